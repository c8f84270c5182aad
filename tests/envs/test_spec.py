"""Codecs between Gymnasium's spaces and ctrlrl's rows."""

import numpy as np
import pytest
from gymnasium import spaces

from ctrlrl.envs.spaces import Spaces
from ctrlrl.envs.spec import action_codec, env_spec, obs_codec

IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
NESTED = spaces.Dict(
    {
        "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "grip": spaces.MultiBinary(3)}),
        "camera": IMAGE,
        "mode": spaces.Discrete(4, start=2),
        "tools": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, ()))),
    }
)
ACTIONS = (
    spaces.MultiDiscrete([3, 2, 4], start=[1, 0, -1]),
    spaces.MultiDiscrete([[2, 3], [4, 5]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 2)),
    spaces.Discrete(5, start=-2),
    spaces.Box(np.float32([-2, 0]), np.float32([1, 10])),
)


def batch(space, n):
    from gymnasium.vector.utils import concatenate, create_empty_array

    return concatenate(space, [space.sample() for _ in range(n)], create_empty_array(space, n))


def test_a_nested_observation_becomes_one_row_part_by_part():
    codec = obs_codec(NESTED)
    NESTED.seed(0)
    obs = batch(NESTED, 5)
    rows = codec.encode(obs)
    assert rows.shape == (5, codec.dim) == (5, 2 + 3 + 36 * 40 * 3 + 4 + 5 + 1)
    assert rows.dtype == np.float32
    assert [p.part.name for p in codec.parts] == ["arm.angle", "arm.grip", "camera", "mode", "tools.0", "tools.1"]
    angle, grip, camera, mode, tools, last = np.split(rows, np.cumsum([p.dim for p in codec.parts])[:-1], axis=1)
    assert np.array_equal(angle, obs["arm"]["angle"])
    assert np.array_equal(grip, obs["arm"]["grip"])
    assert np.array_equal(camera.reshape(5, 3, 36, 40), np.moveaxis(obs["camera"], -1, 1))  # channels first
    assert np.array_equal(mode.argmax(1), obs["mode"] - 2)
    assert np.array_equal(tools[:, :2].argmax(1), obs["tools"][0][:, 0])
    assert np.array_equal(tools[:, 2:].argmax(1), obs["tools"][0][:, 1])
    assert (tools.sum(1) == 2).all()
    assert np.array_equal(last[:, 0], obs["tools"][1])


def test_one_image_stays_bytes_in_either_order_of_axes():
    codec = obs_codec(IMAGE)
    obs = batch(IMAGE, 2)
    rows = codec.encode(obs)
    assert rows.dtype == np.uint8
    assert np.array_equal(rows, codec.encode(np.moveaxis(obs, -1, 1)))  # SB3 hands images over channels first
    assert codec.is_single(obs[0])
    assert codec.is_single(np.moveaxis(obs, -1, 1)[0])
    assert not codec.is_single(obs)
    spec = env_spec(codec, action_codec(ACTIONS[0]), n_envs=2)
    assert spec.obs_parts == (("", (3, 36, 40), True),)
    assert spec.nvec == (3, 2, 4)


def test_channel_first_images_are_taken_channels_last_too():
    first = spaces.Box(0, 255, (3, 36, 40), np.uint8)
    codec, obs = obs_codec(first), batch(first, 2)
    last = np.moveaxis(obs, 1, -1)
    assert np.array_equal(codec.encode(obs), codec.encode(last))
    assert codec.is_single(last[0])
    assert not codec.is_single(last)
    plain = obs_codec(spaces.Box(-1, 1, (3, 36, 40)))
    with pytest.raises(ValueError, match="must have shape"):
        plain.encode(last.astype(np.float32))


def test_an_image_of_fractions_is_refused_not_cut_to_zeros():
    codec, obs = obs_codec(IMAGE), batch(IMAGE, 2)
    assert np.array_equal(codec.encode(obs.astype(np.float64)), codec.encode(obs))
    for wrong in (obs / 255.0, obs.astype(np.int64) - 300):
        with pytest.raises(ValueError, match="must hold whole numbers"):
            codec.encode(wrong)


def test_rows_are_copies():
    for space in (IMAGE, spaces.Box(-1, 1, (3,))):
        obs = batch(space, 2)
        rows = obs_codec(space).encode(obs)
        assert not np.shares_memory(obs, rows)


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_actions_reach_every_corner_of_their_space_and_come_back(space):
    codec = action_codec(space)
    space.seed(1)
    actions = np.stack([space.sample() for _ in range(300)])
    encoded = codec.encode(actions)
    decoded = codec.decode(encoded)
    assert decoded.shape == actions.shape
    assert np.allclose(decoded, actions, atol=1e-5)
    assert all(space.contains(a) for a in decoded)
    if codec.nvec:
        assert encoded.dtype == np.int64
        assert (encoded.max(0) == np.array(codec.nvec) - 1).all()
        assert (encoded.min(0) == 0).all()


def test_discrete_actions_out_of_range_are_refused_by_number():
    codec = action_codec(spaces.MultiDiscrete([3, 2]), "toy")
    with pytest.raises(ValueError, match=r"toy: discrete actions must lie in 0\.\.\.1, got 2"):
        codec.decode(np.array([[2, 0], [0, 2]]))
    with pytest.raises(ValueError, match=r"integers of shape \[B, 2\], got int64 \(2,\)"):
        codec.decode(np.array([1, 1]))


def test_a_wrong_part_of_an_observation_is_named():
    codec = obs_codec(NESTED, "toy")
    obs = batch(NESTED, 2)
    with pytest.raises(ValueError, match=r"toy: observation 'arm.angle' must have shape \(2,\).*got \(3,\)"):
        codec.encode(obs | {"arm": obs["arm"] | {"angle": np.zeros((2, 3))}})
    with pytest.raises(ValueError, match="toy: the observation has no 'camera', its space does"):
        codec.encode({k: v for k, v in obs.items() if k != "camera"})
    with pytest.raises(ValueError, match="toy: observation 'mode' 7 lies outside"):
        codec.encode(obs | {"mode": np.array([2, 7])})
    with pytest.raises(ValueError, match=r"toy: observation_space 'text' Text is not supported"):
        obs_codec(spaces.Dict({"text": spaces.Text(3)}), "toy")


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_spaces_survive_json(action):
    import json

    for obs in (NESTED, IMAGE, spaces.Box(-np.inf, np.inf, (2, 2)), spaces.Discrete(3, start=1)):
        both = Spaces(obs, action)
        again = Spaces.from_json(json.loads(json.dumps(both.to_json())), "file")
        assert again == both
        assert [p.part for p in obs_codec(again.observation).parts] == [p.part for p in obs_codec(obs).parts]


def test_predict_takes_one_nested_observation_or_a_batch():
    import torch

    both = Spaces(NESTED, spaces.MultiBinary(2))
    codec = obs_codec(NESTED)
    obs = batch(NESTED, 4)

    def act(rows):
        return (rows[:, :2] > 0).long()

    many = both.predict(act, obs, torch.device("cpu"))
    assert np.array_equal(many, (codec.encode(obs)[:, :2] > 0).astype(int))
    first = {
        "arm": {k: v[0] for k, v in obs["arm"].items()},
        "camera": obs["camera"][0],
        "mode": obs["mode"][0],
        "tools": tuple(t[0] for t in obs["tools"]),
    }
    assert np.array_equal(both.predict(act, first, torch.device("cpu")), many[0])
