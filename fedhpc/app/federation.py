"""The federation as a user meets it: sums and means that show no site's own values, and training loops."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

from numpy.typing import NDArray

from fedhpc.federation.session import Session
from fedhpc.federation.sum_result import Sums
from fedhpc.federation.weighted_sum import weight_share, weighted_sum

if TYPE_CHECKING:
    import torch

    from fedhpc.train.own_loop import OwnLoopBackend, UnusedParameters
    from fedhpc.train.sync import Sync


class SumOptions(TypedDict, total=False):
    """What `Federation.sum` may be told besides `skip`; see there."""

    bound: float | None
    name: str | None
    everyone: bool | None
    per_element: bool | None


class MeanOptions(TypedDict, total=False):
    """What `Federation.mean` may be told; see there."""

    weight: float | None
    bound: float | None
    name: str | None
    per_element: bool | None


class Federation:
    """One rank's hold on the federation. Every rank of every site makes the same calls in the same order.

    A site is one party: the values of its rank 0 count. Add up the ranks of a site first where each holds a share.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.__exit__(kind, error, trace)

    def close(self) -> None:
        """Leave the federation: the leaders meet once more, and no sum is possible afterwards. Safe to call twice.

        A site that sums while another one leaves gets a PeersError instead of waiting forever.
        """
        self.session.close()

    @property
    def site(self) -> str:
        """This site's name."""
        return self.session.site

    @property
    def sites(self) -> list[str]:
        """All sites, in roster order."""
        return self.session.sites

    @property
    def rank(self) -> int:
        """This process's rank in its site."""
        return self.session.rank

    @property
    def ranks(self) -> int:
        """The number of ranks of this site."""
        return self.session.ranks

    def forget(self) -> None:
        """Drop what is kept to repeat the sums so far. Call it after your script has saved what it needs of them.

        Over a relay a script that is killed gets all finished sums again until then, from the site's disk; afterwards
        it must start from what it saved. Every rank of every site calls it after the same sum. Over mpi nothing is
        kept: the sites sign what they hold, and the next sum makes new keys.
        """
        self.session.forget()

    @overload
    def sum(self, arrays: Mapping[str, Any], *, skip: Literal[False] = False, **how: Unpack[SumOptions]) -> Sums: ...

    @overload
    def sum(self, arrays: Any, *, skip: Literal[False] = False, **how: Unpack[SumOptions]) -> NDArray[Any]: ...

    @overload
    def sum(self, arrays: Mapping[str, Any], *, skip: bool, **how: Unpack[SumOptions]) -> Sums | None: ...

    @overload
    def sum(self, arrays: Any, *, skip: bool, **how: Unpack[SumOptions]) -> NDArray[Any] | None: ...

    def sum(
        self,
        arrays: Mapping[str, Any] | Any,
        *,
        bound: float | None = None,
        name: str | None = None,
        everyone: bool | None = None,
        per_element: bool | None = None,
        skip: bool = False,
    ) -> Sums | NDArray[Any] | None:
        """The sum over all sites of each named array, on every rank of every site.

        `arrays`: name -> array-like (integers, bool, floats), or one array-like, which gives one array back; tensors
        on any device, 16-bit floats as float32. Masked arrays, and what has labels or units, are refused (DataError).
        Integers come back exact, as int64. Floats are rounded to a grid, given as `.quantum`.
        `bound`: the largest absolute value a site's float may have, the same at all sites. Without it masked sums
        come first that show how large the largest value of any site is, to a power of 2^8 for each element, and
        nothing else; beyond 4096 elements a call, one counts the sites per exponent of each larger array's largest.
        `per_element`: True for a grid of each element's own, however many and also with a bound; False for one of each
        array. With a bound it is one for each array by default. One of each element costs a lane of 8 bytes for every
        power of 2^8 that it may have: 35 for float32, 263 for float64, at most 76 with a bound.
        `name`: what is summed; a second, different sum under the same name is refused (PolicyError).
        `everyone`: all sites of the roster must be in the sum. This is the default without a name and with `skip`: the
        same numbers over two sets of sites show those of the site that one set lacks. Otherwise a named sum through a
        relay may lack up to N − τ sites that were lost on the way; `.sites` names those in it. Within one MPI job
        no site can be missing.
        `skip`, the same at all sites, for sums over everyone: None on every rank if the sum is not there
        `[cohort] upload_s` after this site was ready and τ sites do without it. Some sites may hold the sum even so;
        nothing that the sites do together may depend on whether it came. Floats then need `bound`.
        Raises DataError for NaN, infinity and values beyond the bound or ±(2^63 − 1)/N; nothing is clipped or sent.
        """
        everyone = (name is None or skip) if everyone is None else everyone
        one = not isinstance(arrays, Mapping)
        with self.session.own_input():
            sums = weighted_sum(
                self.session, {"value": arrays} if one else arrays, 1.0, bound=bound, name=name,
                per_element=per_element, everyone=everyone, skip=skip,
            )  # fmt: skip
        return sums["value"] if one and sums is not None else sums

    @overload
    def mean(self, arrays: Mapping[str, Any], **how: Unpack[MeanOptions]) -> Sums: ...

    @overload
    def mean(self, arrays: Any, **how: Unpack[MeanOptions]) -> NDArray[Any]: ...

    def mean(
        self,
        arrays: Mapping[str, Any] | Any,
        *,
        weight: float | None = None,
        bound: float | None = None,
        name: str | None = None,
        per_element: bool | None = None,
    ) -> Sums | NDArray[Any]:
        """The mean over all sites of each named array, weighted by each site's private `weight` (absent: equally).

        Integers are averaged as float64. The sum of the weights is a masked sum of its own; no single weight is shown.
        All sites must be in both, by default also in an equal mean without a name: over fewer sites, a mean of
        values whose total is known would show the weight of the site that is missing.
        `bound` is for the values before weighting. Otherwise as `sum`. Raises DataError if the weights add up to 0.
        """
        given = arrays if isinstance(arrays, Mapping) else {"value": arrays}
        everyone = weight is not None or name is None
        with self.session.own_input():
            share = 1.0 / len(self.sites)
            if weight is not None:
                share = weight_share(self.session, weight, name and f"weights of {name}")
            means = weighted_sum(
                self.session, given, share, bound=bound, name=name, per_element=per_element, everyone=everyone,
                average=weight is None, floats_only=True,
            )  # fmt: skip
        assert means is not None
        return means if isinstance(arrays, Mapping) else means["value"]

    def sync(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int | None = None,
        weight: int | None = None,
        keep_optimizer_state: bool = True,
    ) -> Sync:
        """Federated training of your own loop: call `.step()` after each optimiser step.

        `model`: the same initial values at every site (seed them); DDP-wrapped models are unwrapped. One that
        FSDP2 (`fully_shard`) has dealt out over the ranks of the site stays so: no rank ever holds it whole.
        `every`: local steps per round; by default [train] local_steps of federation.toml. `weight`: this site's number
        of training rows, private; needed unless the strategy's weights are uniform or declared.
        `keep_optimizer_state`: False forgets momenta after each exchange. Raises ConfigError.
        """
        from fedhpc.train.sync import Sync

        return Sync(
            self.session, model, optimizer, every=every, weight=weight, keep_optimizer_state=keep_optimizer_state
        )


def site_backend(
    federation: Federation,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    unused_parameters: UnusedParameters = "refuse",
) -> OwnLoopBackend:
    """How the ranks of this rank's site train together in a loop of their own: `model = backend.wrap(model)`.

    One rank trains by itself; several get a torch process group made from the site's communicator, and DDP. Give each
    rank its share of the site's batch. Collective over the site; `backend.device` is where the model belongs. Raises
    ConfigError if `device` is cuda and a rank has no GPU.

    A `backward()` after which a parameter has no gradient from this rank's rows raises ConfigError with its name, on
    one rank too. With `unused_parameters = "allow"` the average counts it as zero, and it stays None where no rank's
    rows reach it.
    """
    from fedhpc.train.own_loop import open_own_loop

    return open_own_loop(federation.session.party.site, device, unused_parameters)
