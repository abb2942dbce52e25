"""What a leader tells the other ranks of its site comes back as it was, and shows no key to a log or a debugger."""

from __future__ import annotations

import pytest

from fedhpc.sums.over_relay.orders import HideOrder, OpenOrder

TAG_KEY, MASK_KEY = b"tag key of 32 bytes, not for eyes", b"mask key of 32 bytes, not for eye"
STREAMS = ((MASK_KEY[:32], 1), (MASK_KEY[:31] + b"!", -1))


@pytest.mark.parametrize(
    "order",
    [
        HideOrder(7, True, TAG_KEY[:32], STREAMS),
        HideOrder(7, False, TAG_KEY[:32], ()),
        OpenOrder(7, TAG_KEY[:32], STREAMS),
    ],
)
def test_an_order_comes_back_and_its_repr_has_no_key(order: HideOrder | OpenOrder) -> None:
    again = type(order).from_bytes(order.to_bytes())
    assert again.to_bytes() == order.to_bytes()
    assert (again.attempt, again.tag_key, tuple(again.streams)) == (order.attempt, order.tag_key, tuple(order.streams))
    assert "attempt=7" in repr(order)
    assert "key of 32" not in repr(order)
    assert repr(TAG_KEY[:32]) not in repr(order)
