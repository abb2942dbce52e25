from hypothesis import given
from hypothesis import strategies as st

from fedhpc.data.schema import Feature, FeatureSet, Label, compare_features

TWO = FeatureSet((Feature("age", "years"), Feature("höhe", "m")), Label("ill"), (2,))


def test_the_hash_is_pinned():
    """Stores written by every version carry it: a change here needs a new schema version."""
    assert TWO.canonical() == (
        b'{"codings":["number","number"],"domain":"fedhpc feature set v1",'
        b'"label":{"coding":"integer","dtype":"int64","name":"ill","unit":""},'
        b'"names":["age","h\\u00f6he"],"row_shape":[2],"units":["years","m"]}'
    )


def test_differences_are_named():
    other = FeatureSet((Feature("höhe", "m"), Feature("age", "months")), Label("ill", coding="1 above 0.0"), (2,))
    lines = "\n".join(compare_features(TWO, other))
    assert "'age': unit 'years' in the first, 'months' in the second" in lines
    assert "order differs from column 0" in lines
    assert "label: coding 'integer' in the first, '1 above 0.0' in the second" in lines
    assert compare_features(TWO, TWO) == []
    extra = FeatureSet((*TWO.features, Feature("bmi")), TWO.label, (3,))
    assert compare_features(TWO, extra) == ["'bmi' is only in the second"]
    assert compare_features(extra, TWO) == ["'bmi' is only in the first"]
    flat = FeatureSet(TWO.features, TWO.label, (2, 4))
    assert "rows have shape" in compare_features(TWO, flat)[0]


NAMES = st.sampled_from(["a", "b", "c"])
SETS = st.builds(
    lambda names, units, label: FeatureSet(
        tuple(Feature(name, unit) for name, unit in zip(names, units, strict=False)), label, (len(names),)
    ),
    st.permutations(["a", "b", "c"]).flatmap(lambda p: st.integers(1, 3).map(lambda k: p[:k])),
    st.lists(st.sampled_from(["", "m"]), min_size=3, max_size=3),
    st.builds(Label, NAMES, st.sampled_from(["int64", "float32"])),
)


@given(SETS, SETS)
def test_there_are_differences_exactly_when_the_hashes_differ(mine, theirs):
    assert bool(compare_features(mine, theirs)) == (mine.sha256 != theirs.sha256)
