"""Loading the stock model under a checkpoint; knows nothing of gists.

A base is named by a folder, by a hub id, or by a file that a Python package carries (`base_files`). Weights are read
from safetensors; pickled ones only where they are asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from gistlm.errors import (
    GistlmError,
    InputError,
    MissingDependencyError,
    ModelError,
    ModelNotFoundError,
)
from gistlm.files import sha256
from gistlm.models.base_files import PACKAGE, find_package_file

logger = logging.getLogger(__name__)

_SAMPLES = 64


class LoadedBase(NamedTuple):
    """A stock model and what identifies it."""

    model: PreTrainedModel
    tokenizer: Any
    fingerprint: str
    """Of the weights as the files hold them, before any change of dtype."""


def load_base(name: str, device: str | None, dtype: torch.dtype | None, *, torch_files: bool = False) -> LoadedBase:
    """A stock model in eval mode, its tokenizer and its fingerprint.

    dtype: None keeps the file's own. torch_files: also read pytorch_model*.bin, by torch's restricted unpickler, which
    takes tensors and runs no code. Raises `ModelNotFoundError`, `ModelError` or `MissingDependencyError`.
    """
    place = check_device(device)
    try:
        folder = _converted(name) if name.startswith(PACKAGE) else name
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=None if torch_files else True,
            weights_only=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except GistlmError:
        raise
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise _explain(name, error) from error
    _fill_configuration(model, name)
    fingerprint = fingerprint_weights(dict(model.named_parameters()))
    for parameter in model.parameters():  # parameters alone: rotary frequencies stay in float32
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    return LoadedBase(model.eval().to(place), tokenizer, fingerprint)


def _fill_configuration(model: Any, name: str) -> None:
    """Set what every pass relies on and a model's config.json may leave out or say otherwise."""
    for module in model.modules():
        if hasattr(module, "config"):  # T5's encoder and decoder have their own
            module.config.return_dict = True
    if model.config.is_encoder_decoder and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id
        if model.config.decoder_start_token_id is None:
            raise ModelError(
                f"{name} does not say from which token its decoder starts; write decoder_start_token_id into its "
                f"config.json (0 for T5)"
            )


def check_device(name: str | None) -> torch.device:
    """The device of that name, by default the first accelerator. Raises `InputError` where there is none such here."""
    try:
        device = torch.device(name or default_device())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InputError(f"there is no device {name!r} here; leave it out, or give cpu, cuda or cuda:0") from error
    return device


def default_device() -> str:
    """The first accelerator, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fingerprint_weights(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and 64 spread samples of every tensor, read as bfloat16.

    It tells models apart in milliseconds; it is no defence against an attacker.
    """
    parts = []
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        places = torch.arange(_SAMPLES, device=flat.device) * (flat.numel() - 1) // (_SAMPLES - 1)
        sample = flat[places].to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes()
        parts += [f"{name} {[*tensor.shape]}".encode(), sample]
    return sha256(*parts)


def _explain(name: str, error: Exception) -> ModelError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if name.startswith(PACKAGE):
        return ModelNotFoundError(
            f"the model {name} cannot be read ({type(error).__name__}); check its package and file"
        )
    if looks_local and not Path(name).exists():
        return ModelNotFoundError(
            f"there is no model at {name}; give a folder, a hub id, or a name from: gistlm models"
        )
    if _has_only_pickles(name, error):
        return ModelError(
            f"{name} has no safetensors, and gistlm opens no pickled weights (pytorch_model.bin); load it once with "
            f"transformers and save it with save_pretrained, which writes safetensors; for a difference of the "
            f"original project and its base, gistlm convert reads both kinds"
        )
    if not Path(name).exists() and isinstance(error, OSError):
        return ModelNotFoundError(
            f"cannot find the model {name}: it is no folder here and the hub did not give it; "
            f"check the name, or choose one from: gistlm models"
        )
    return ModelError(f"cannot load the model {name}: {first_line}")


def _has_only_pickles(name: str, error: Exception) -> bool:
    folder = Path(name)
    if folder.is_dir():
        return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))
    return "cannot be loaded with `safetensors`" in str(error)  # what transformers says of a hub repository


def _converted(name: str) -> str:
    """The folder with the converted model of a package's file; converts it at first use."""
    source, file, target = find_package_file(name)
    if not (target / "config.json").exists():
        if importlib.util.find_spec("gguf") is None:
            raise MissingDependencyError("gguf", f"the model {name}", "pip install 'gistlm[smollm2]'")
        logger.info("converting %s for its first use; this is done once and takes up to a minute", file)
        _convert_gguf(source, file, target)
    return str(target)


def _convert_gguf(source: Path, file: str, target: Path) -> None:
    """Dequantise to bfloat16 safetensors; the folder appears whole or not at all."""
    from transformers import GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(work)
        AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False).save_pretrained(work)
        os.chmod(work, 0o755)
        try:
            work.rename(target)
        except OSError:  # another process was faster
            if not (target / "config.json").exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
