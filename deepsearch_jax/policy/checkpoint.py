"""Hugging Face directories: config.json, generation_config.json and one or many safetensors files, read and written."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deepsearch_jax.policy.config import ModelConfig
from deepsearch_jax.policy.int8 import Int8
from deepsearch_jax.policy.model import Params, init_params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PathLike = str | os.PathLike[str]

# Our path below `layers` -> the tensor's name below `model.layers.I.`; a family has those its config asks for.
_LAYER_NAMES: dict[tuple[str, ...], str] = {
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("attention", "query", "kernel"): "self_attn.q_proj.weight",
    ("attention", "key", "kernel"): "self_attn.k_proj.weight",
    ("attention", "value", "kernel"): "self_attn.v_proj.weight",
    ("attention", "output", "kernel"): "self_attn.o_proj.weight",
    ("attention", "query", "bias"): "self_attn.q_proj.bias",
    ("attention", "key", "bias"): "self_attn.k_proj.bias",
    ("attention", "value", "bias"): "self_attn.v_proj.bias",
    ("attention", "query_norm", "scale"): "self_attn.q_norm.weight",
    ("attention", "key_norm", "scale"): "self_attn.k_norm.weight",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("mlp", "gate", "kernel"): "mlp.gate_proj.weight",
    ("mlp", "up", "kernel"): "mlp.up_proj.weight",
    ("mlp", "down", "kernel"): "mlp.down_proj.weight",
}
# With norms behind attention and MLP, the name of the norm before the MLP means another one.
_POST_NORM_NAMES: dict[tuple[str, ...], str] = {
    ("attention_post_norm", "scale"): "post_attention_layernorm.weight",
    ("mlp_norm", "scale"): "pre_feedforward_layernorm.weight",
    ("mlp_post_norm", "scale"): "post_feedforward_layernorm.weight",
}
_END_NAMES: dict[tuple[str, ...], str] = {
    ("embed", "embedding"): "model.embed_tokens.weight",
    ("final_norm", "scale"): "model.norm.weight",
    ("head", "kernel"): "lm_head.weight",
}


def load_pretrained(
    directory: PathLike, *, param_dtype: str = "float32", compute_dtype: str = "float32", remat: str = "none"
) -> tuple[ModelConfig, Params]:
    """Reads a decoder from a Hugging Face directory.

    Args:
      directory: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
      param_dtype, compute_dtype, remat: see ModelConfig; weights are converted to param_dtype.
    Returns: the config and the parameters (stacked layers).
    Raises:
      ValueError: the directory or a file is missing, cut short or not a supported model.
    """
    config = load_config(directory, param_dtype=param_dtype, compute_dtype=compute_dtype, remat=remat)
    with _Tensors(pathlib.Path(directory)) as tensors:
        params = _build(config, tensors)
        left = [name for name in tensors.names - tensors.read if not name.endswith("rotary_emb.inv_freq")]
        left = [name for name in left if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if left:
        raise ValueError(
            f"{directory}: {len(left)} tensors have no place in a {config.architecture}: {sorted(left)[:4]}"
        )
    return config, params


def load_config(directory: PathLike, **settings: Any) -> ModelConfig:
    """Reads config.json and, where there is one, generation_config.json; settings as in ModelConfig.from_hf."""
    path = pathlib.Path(directory)
    if not path.is_dir():
        raise ValueError(f"no model directory at {path}; give a folder with config.json and model.safetensors")
    generation = path / "generation_config.json"
    return ModelConfig.from_hf(
        _read_json(path / "config.json"), _read_json(generation) if generation.exists() else None, **settings
    )


def save_pretrained(
    directory: PathLike,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json, generation_config.json and the weights under their published names.

    Each file is written beside its place and moved there when complete. Tokenizer files are the caller's business.
    Args:
      dtype: of the saved weights, for instance "bfloat16"; default: the dtype the parameters have.
      max_shard_bytes: weights beyond this go into several files with an index.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    save_dtype = jnp.dtype(dtype or config.param_dtype)
    shards: list[dict[str, tuple[int, Callable[[], np.ndarray]]]] = [{}]
    total = size = 0
    for name, num_values, value in hf_tensors(config, params):
        num_bytes = num_values * save_dtype.itemsize
        if size and size + num_bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = (num_bytes, value)
        size, total = size + num_bytes, total + num_bytes
    files = [WEIGHTS]
    if len(shards) > 1:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        # ascontiguousarray: safetensors writes the memory of a transposed view in the wrong order.
        arrays = {name: np.ascontiguousarray(value().astype(save_dtype)) for name, (_, value) in shard.items()}
        save_file(arrays, path / (file + ".partial"), metadata={"format": "pt"})
        os.replace(path / (file + ".partial"), path / file)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
        write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(path / "config.json", config.to_hf(str(save_dtype)))
    write_json(path / "generation_config.json", config.to_hf_generation())
    for old in path.glob("model*.safetensors*"):  # of an earlier save in another number of files
        if old.name not in files and not (old.name == INDEX and len(shards) > 1):
            old.unlink()


def hf_tensors(config: ModelConfig, params: Params) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """Yields (published name, number of values, function that gives the array in published layout [out, in]).

    Works on any tree shaped like stacked parameters, for instance gradients.
    Raises:
      ValueError: the parameters are int8.
    """
    if isinstance(params["embed"]["embedding"], Int8):
        raise ValueError("int8 parameters are for decoding and have no published form; save those they were made from")
    for path, name in _END_NAMES.items():
        if path[0] in params:
            leaf = _get(params, path)
            yield name, leaf.size, functools.partial(_published, leaf, path)
    for index in range(config.num_layers):
        for path, suffix in _layer_names(config).items():
            leaf = _get(params["layers"], path)
            yield (
                f"model.layers.{index}.{suffix}",
                leaf.size // config.num_layers,
                functools.partial(_published, leaf, path, index),
            )


def layer_module(path: tuple[str, ...]) -> str:
    """Published name, within its layer, of the projection at a path: self_attn.q_proj of ("attention", "query")."""
    return _LAYER_NAMES[(*path, "kernel")].removesuffix(".weight")


def _layer_names(config: ModelConfig) -> dict[tuple[str, ...], str]:
    names = _LAYER_NAMES | (_POST_NORM_NAMES if config.post_norms else {})
    absent = {"bias": not config.qkv_bias, "query_norm": not config.qk_norm, "key_norm": not config.qk_norm}
    return {path: name for path, name in names.items() if not any(absent.get(part, False) for part in path)}


def _published(leaf: jax.Array, path: tuple[str, ...], layer: int | None = None) -> np.ndarray:
    value = np.asarray(leaf if layer is None else leaf[layer])
    return value.T if path[-1] == "kernel" else value


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: jax.Array) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _build(config: ModelConfig, tensors: "_Tensors") -> Params:
    """Reads tensor by tensor into the stacked layout, so that no second copy of the model is ever held."""
    shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    params: Params = {}
    for path, name in _END_NAMES.items():
        if path[0] in shapes:
            value = tensors.get(name, _get(shapes, path).shape, path[-1] == "kernel")
            _put(params, path, jnp.asarray(value.astype(config.dtypes[0])))
    for path, suffix in _layer_names(config).items():
        shape = _get(shapes["layers"], path).shape
        stacked = np.empty(shape, config.dtypes[0])
        for index in range(config.num_layers):
            stacked[index] = tensors.get(f"model.layers.{index}.{suffix}", shape[1:], path[-1] == "kernel")
        _put(params, ("layers", *path), jnp.asarray(stacked))
    return params


class _Tensors:
    """All tensors of a directory by name, over one or many safetensors files."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.read: set[str] = set()
        if (directory / INDEX).exists():
            index = _read_json(directory / INDEX)
            if not isinstance(index.get("weight_map"), dict):
                raise ValueError(f"{directory / INDEX} has no weight_map; fetch the model again")
            files = _plain_names(index["weight_map"].values(), directory / INDEX)
        else:
            files = [WEIGHTS]
        missing = [file for file in files if not (directory / file).is_file()]
        if missing:
            raise ValueError(
                f"{directory} lacks {len(missing)} of {len(files)} weight files ({', '.join(missing[:4])}); the "
                "download is incomplete, fetch the model again"
            )
        self._files: list[Any] = []
        self._owner: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(directory / file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{directory / file} is cut short or damaged ({error}); fetch the model again"
                ) from error
            self._files.append(opened)
            self._owner |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> set[str]:
        return set(self._owner)

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for opened in self._files:
            opened.__exit__(*exc_info)

    def get(self, name: str, shape: tuple[int, ...], transpose: bool) -> np.ndarray:
        """The tensor in our layout; `shape` is the expected shape there."""
        if name not in self._owner:
            raise ValueError(f"{self.directory} has no tensor {name!r}; config.json and weights do not belong together")
        value = self._owner[name].get_tensor(name)
        value = value.T if transpose else value
        if value.shape != shape:
            raise ValueError(
                f"{self.directory}: tensor {name!r} has shape {value.shape} in [in, out] order, but config.json "
                f"asks for {shape}"
            )
        self.read.add(name)
        return value


def _plain_names(names: Iterable[Any], index: pathlib.Path) -> list[str]:
    """The weight files an index names, which lie beside it. A path that leads elsewhere is refused."""
    found = set()
    for name in names:
        is_plain = isinstance(name, str) and name == pathlib.PureWindowsPath(name).name and name.isprintable()
        if not (is_plain and name.endswith(".safetensors")):
            raise ValueError(
                f"{index} names the weight file {name!r}; expected the name of a .safetensors file in the same folder. "
                "Fetch the model again from a source you trust"
            )
        found.add(name)
    return sorted(found)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}; it is no (complete) Hugging Face directory") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes beside the place and moves there when complete."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    os.replace(partial, path)
