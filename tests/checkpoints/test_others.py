"""Files that are not loaded: each is named, with what to do instead, and none of its code is run."""

import argparse
import gzip
import pickle
import sys
import types

import pytest
import torch

from fastdiff import InputError, load


def refused(path):
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message and message.isprintable()
    return message


# Some keys of each kind → words of the message.
KINDS = {
    "latent diffusion": (
        ["model.diffusion_model.time_embed.0.weight", "first_stage_model.encoder.conv_in.weight"],
        "a latent diffusion model with its autoencoder; it draws the latents",
    ),
    "Stable Diffusion's network": (
        ["time_embed.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"],
        "Stable Diffusion's network; it draws the latents",
    ),
    "an autoencoder": (
        ["encoder.conv_in.weight", "decoder.conv_out.weight"],
        "is of an autoencoder; it denoises nothing",
    ),
    "DiT": (["x_embedder.proj.weight", "blocks.0.adaLN_modulation.1.weight"], "the kind of DiT; it draws the latents"),
    "LoRA of peft": (["unet.down_blocks.0.to_q.lora_A.weight"], "changes to a network (LoRA); join them"),
    "LoRA of old": (["mid_block.processor.to_q.lora.down.weight"], "changes to a network (LoRA); join them"),
    "diffusers": (
        ["conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"],
        "is of diffusers; its sizes are in the config.json beside it: load the folder with both",
    ),
    "LayerNorm g and b": (
        ["time_mlp.1.weight", "downs.0.0.ds_conv.weight", "downs.0.2.fn.norm.g", "downs.0.2.fn.norm.b"],
        "first PyTorch edition or an early denoising-diffusion-pytorch",
    ),
    "Rezero": (
        ["model.mlp.0.weight", "model.downs.0.2.fn.g", "model.mid_attn.fn.fn.to_qkv.weight"],
        "the first versions of denoising-diffusion-pytorch",
    ),
    "ermongroup/ddim": (
        ["temb.dense.0.weight", "down.0.block.0.norm1.weight"],
        "of ermongroup/ddim or pytorch_diffusion",
    ),
    "pytorch-ddpm": (
        ["time_embedding.timembedding.0.weight", "downblocks.0.block1.0.weight"],
        "is of pytorch-ddpm; make",
    ),
    "score_sde": (
        ["module.all_modules.0.W", "module.all_modules.1.weight"],
        "is of score_sde_pytorch; make the network",
    ),
    "EDM": (
        ["model.map_layer0.weight", "model.enc.32x32_conv.weight", "model.dec.8x8_in0.norm0.weight"],
        "is of NVIDIA's EDM; make the network with its own code",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_of_other_kinds(kind, tmp_path):
    keys, words = KINDS[kind]
    torch.save(
        {"state_dict": {"head.weight": torch.zeros(2), **{key: torch.zeros(2) for key in keys}}}, tmp_path / "a.ckpt"
    )
    assert words in refused(tmp_path / "a.ckpt")


def html(path):
    path.write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>")


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")


def hdf5(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))


def gguf(path):
    path.write_bytes(b"GGUF" + bytes(100))


def compressed(path):
    path.write_bytes(gzip.compress(b"x" * 100))


def script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def optimizer(path):
    network = torch.nn.Linear(2, 2)
    made = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    made.step()
    torch.save(made.state_dict(), path)


def lightning(path):
    torch.save(
        {"state_dict": torch.nn.Linear(2, 2).state_dict(), "hyper_parameters": argparse.Namespace(lr=1e-3)}, path
    )


@pytest.mark.parametrize(
    "write, words",
    [
        (html, "is a web page, not a checkpoint; download the file itself"),
        (pointer, "is Git LFS's pointer to a file, not the file itself; fetch that: git lfs pull"),
        (hdf5, "is an HDF5 file"),
        (gguf, "is a GGUF file"),
        (compressed, "is compressed; unpack it first"),
        (
            script,
            "is a TorchScript archive, which is code; save its weights: torch.save(torch.jit.load(path).state_dict()",
        ),
        (optimizer, "is an optimizer's state; the network's weights are in another file, such as model.safetensors or"),
        (
            lightning,
            "(argparse.Namespace), and only tensors and plain values are loaded; save the state dict alone: if you "
            'trust it, torch.save(torch.load(path, weights_only=False)["state_dict"], "weights.pt")',
        ),
    ],
)
def test_other_files(write, words, tmp_path):
    write(tmp_path / "file.pt")
    assert words in refused(tmp_path / "file.pt")


def test_git_lfs_for_safetensors(tmp_path):
    pointer(tmp_path / "model.safetensors")
    assert "is Git LFS's pointer" in refused(tmp_path / "model.safetensors")


class Pickled(torch.nn.Linear):
    """Pickled as a persistent object of NVIDIA's code is: source, and the function that runs it."""

    def __reduce__(self):
        source = "raise SystemExit('the code of the file was run')"
        meta = dict(type="class", version=6, module_src=source, class_name="Net", state=dict(self.state_dict()))
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@pytest.fixture
def nvidias(monkeypatch):
    """Their module's name, while a pickle is written."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        patched.setitem(sys.modules, "torch_utils.persistence", module)
        yield


@pytest.mark.parametrize("how", ["pickle", "pickle, protocol 2", "zip"])
@pytest.mark.parametrize("name", ["edm-cifar10-32x32-uncond-vp.pkl", "training-state-000001.pt", "no-name"])
def test_edms_pickles(how, name, nvidias, tmp_path):
    content, path = {"ema": Pickled(2, 2), "augment_pipe": None, "loss_fn": Pickled(1, 1)}, tmp_path / name
    if how == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, **({"protocol": 2} if "2" in how else {})))
    message = refused(path)
    assert "a network pickled together with its code, as NVIDIA's EDM and StyleGAN do" in message
    assert 'network = pickle.load(open(path, "rb"))["ema"]' in message and "docs/checkpoints.md" in message
