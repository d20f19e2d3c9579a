import pytest

from ctrain.serving.schemas import (
    Problem,
    RefusedRequest,
    RequestSchema,
    read_admin_request,
    read_label_request,
)
from ctrain.serving.split import challenger_answers

COLUMNS = {
    "carrier": {"kind": "category"},
    "when": {"kind": "timestamp"},
    "distance": {"kind": "number", "minimum": 0.0},
    "late": {"kind": "flag", "nullable": True},
}
GOOD = b'{"key":"a","features":{"carrier":"AA","when":"2013-01-01T10:00:00Z","distance":3,"late":null}}'


@pytest.fixture(scope="module")
def schema():
    return RequestSchema(COLUMNS)


def body(**changes):
    import json

    row = {"carrier": "AA", "when": "2013-01-01T10:00:00", "distance": 3.5, "late": True} | changes
    return json.dumps({"features": {k: v for k, v in row.items() if v != "gone"}}).encode()


def test_good_request_is_read(schema):
    asked = schema.read(GOOD)
    assert asked.key == "a"
    assert not asked.many
    assert asked.rows[0]["distance"] == 3.0
    assert asked.rows[0]["when"].tzinfo is None


def test_many_rows_are_read(schema):
    row = GOOD[GOOD.index(b"{", 1) : -1]
    assert len(schema.read(b'{"rows":[' + row + b"," + row + b"]}").rows) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"carrier": "gone"}, "features.carrier"),
        ({"carrier": 5}, "features.carrier"),
        ({"carrier": None}, "features.carrier"),
        ({"secretextra": 5}, "features.secretextra"),
        ({"distance": "7654321"}, "features.distance"),
        ({"distance": -7654321}, "features.distance"),
        ({"distance": float("nan")}, "features.distance"),
        ({"distance": float("inf")}, "features.distance"),
        ({"distance": 10**400}, "features.distance"),
        ({"distance": True}, "features.distance"),
        ({"when": "7654321 nonsense"}, "features.when"),
        ({"when": 7654321}, "features.when"),
        ({"when": "0001-01-01T00:00:00+14:00"}, "features.when"),
        ({"when": "9999-12-31T23:59:59-12:00"}, "features.when"),
        ({"carrier": ""}, "features.carrier"),
        ({"late": 7654321}, "features.late"),
        ({"late": "yes7654321"}, "features.late"),
    ],
)
def test_wrong_field_is_named_without_its_value(schema, changes, field):
    with pytest.raises(RefusedRequest) as refused:
        schema.read(body(**changes))
    assert refused.value.status == 422
    assert {problem.field for problem in refused.value.problems} == {field}
    assert "7654321" not in str(refused.value.body())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"nope", b"\xff\xfe", b'{"key":"\\ud800","features":{}}', b"[" * 100_000, GOOD + b"x"],
)
def test_broken_json_is_400(schema, raw):
    with pytest.raises(RefusedRequest) as refused:
        schema.read(raw)
    assert refused.value.status == 400


def test_overflowing_number_is_refused(schema):
    with pytest.raises(RefusedRequest) as refused:
        schema.read(GOOD.replace(b":3,", b":1e999,"))
    assert refused.value.status == 422


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"null", b'"x"', b'{"rows":[]}', b'{"rows":[],"features":{}}'])
def test_other_json_is_422(schema, raw):
    with pytest.raises(RefusedRequest) as refused:
        schema.read(raw)
    assert refused.value.status == 422


def test_column_of_another_version_is_allowed_but_not_required():
    schema = RequestSchema({"a": {"kind": "number"}}, also={"b": {"kind": "number"}})
    assert schema.read(b'{"features":{"a":1}}').rows == [{"a": 1.0}]
    assert schema.read(b'{"features":{"a":1,"b":2}}').rows == [{"a": 1.0, "b": 2.0}]


def test_labels_are_read_one_or_many():
    assert read_label_request(b'{"prediction_id":"x","value":1}') == [("x", 1.0)]
    assert len(read_label_request(b'{"labels":[{"prediction_id":"x","value":0}]}')) == 1
    assert read_label_request(b'{"prediction_id":"x","value":0.0}') == [("x", 0.0)]


@pytest.mark.parametrize("value", ["2", "-1", "0.5", "true", "null", '"1"', "NaN", "1e999"])
def test_a_label_is_zero_or_one(value):
    with pytest.raises(RefusedRequest) as refused:
        read_label_request(b'{"prediction_id":"x","value":%s}' % value.encode())
    assert refused.value.status in (400, 422)
    if value in ("2", "-1", "0.5"):
        assert refused.value.problems == (Problem("value", "expected 0 or 1"),)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ('{"training":{"learning_rate":NaN}}', "overrides.training.learning_rate"),
        ('{"training":{"sizes":[1,{"x":Infinity}]}}', "overrides.training.sizes.1.x"),
        ('{"a":1e999}', "overrides.a"),
        ('{"a":-Infinity}', "overrides.a"),
    ],
)
def test_numbers_of_overrides_are_finite_however_deep(overrides, field):
    with pytest.raises(RefusedRequest) as refused:
        read_admin_request(b'{"reason":"because","overrides":%s}' % overrides.encode())
    assert refused.value.status == 422
    assert refused.value.problems == (Problem(field, "is not a finite number"),)


def test_overrides_and_the_version_meant_are_handed_on():
    raw = b'{"reason":"because","version":"v7","overrides":{"training":{"epochs":3}}}'
    assert read_admin_request(raw)["overrides"] == {"training": {"epochs": 3}}
    assert read_admin_request(raw)["version"] == "v7"


def test_no_text_is_a_missing_value_where_a_column_may_lack_one():
    schema = RequestSchema({"a": {"kind": "category", "nullable": True, "allowed": ["x"]}})
    assert schema.read(b'{"features":{"a":""}}').rows == [{"a": ""}]
    with pytest.raises(RefusedRequest):
        schema.read(b'{"features":{"a":"y"}}')


def test_operators_reason_is_required():
    assert read_admin_request(b'{"reason":"because"}') == {"reason": "because"}
    for raw in (b"{}", b'{"reason":"  "}', b'{"reason":""}'):
        with pytest.raises(RefusedRequest):
            read_admin_request(raw)


def test_split_is_sticky_and_steps_nest():
    keys = [f"user-{n}" for n in range(4000)]
    small = {key for key in keys if challenger_answers("r1", key, 0.05)}
    large = {key for key in keys if challenger_answers("r1", key, 0.25)}
    assert small < large
    assert 140 < len(small) < 260
    assert 880 < len(large) < 1120
    other = {key for key in keys if challenger_answers("r2", key, 0.25)}
    assert 180 < len(large & other) < 320


def test_split_ends_are_exact():
    assert not any(challenger_answers("r", str(n), 0.0) for n in range(500))
    assert all(challenger_answers("r", str(n), 1.0) for n in range(500))
    assert not any(challenger_answers("r", None, 0.0) for _ in range(500))
