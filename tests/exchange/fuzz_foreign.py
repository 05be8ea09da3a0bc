"""Open thousands of damaged and hostile files in one process under a limit of its memory; run by test_fuzz.py.

    python fuzz_foreign.py CASES SEED FOLDER

Every case must end in one line of an InputError, or, where only the value of a weight was changed, in a model. An audit hook
ends the process with status 3 at anything that a loader of weights has no business with, and at the interpreter's own
unpickling of names. Prints a JSON line of counts.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import traceback
import types
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

import atonce
from atonce.core.errors import InputError
from atonce.networks.unet import UNet, UNetConfig
from atonce.networks.unet2d import UNet2D, UNet2DConfig

_SPARE = 768 << 20  # bytes of address space above what the process needs when it starts
_FORBIDDEN = re.compile(
    r"os\.(system|exec|fork|posix_spawn|spawn|remove|rename|mkdir|rmdir|link|symlink|putenv|kill|chmod)|subprocess\.|socket\.|shutil\."
    r"|ctypes\.dlopen|pickle\.find_class|exec$|pty\.|webbrowser\.|urllib\.|ftplib\."
)
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "exec":
        caller, code = sys._getframe(1).f_code.co_filename, getattr(arguments[0], "co_filename", "")
        # Annotations of our own classes, which dataclasses keep as text; and Python's own modules, such as a text encoding.
        if caller == typing.__file__ or (
            caller.startswith("<frozen importlib") and code.startswith(os.path.dirname(os.__file__))
        ):
            return
    writes = event == "open" and isinstance(arguments[1], str) and any(mode in arguments[1] for mode in "wax+")
    if watching and (writes or _FORBIDDEN.match(event)):
        sys.stderr.write(f"{event} {str(arguments)[:300]}\n")
        traceback.print_stack()
        sys.stderr.flush()
        os._exit(3)


# ---- whole files


def reconstruct(meta: Any) -> None:
    raise AssertionError


class Persistent(torch.nn.Module):
    def __reduce__(self) -> Any:
        state = {k: v for k, v in self.__dict__.items() if k != "class_name"}
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit(9)",
            "class_name": self.class_name,
            "state": state,
        }
        return reconstruct, (meta,), None


def edm(arguments: dict[str, Any], state: dict[str, Tensor], outer: str = "EDMPrecond", inner: str = "SongUNet") -> bytes:
    for name in ("torch_utils", "torch_utils.persistence"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct  # type: ignore[attr-defined]
    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    root = Persistent()
    root.class_name, root._init_args, root._init_kwargs = inner, (), arguments  # type: ignore[assignment]
    for name, value in state.items():
        module: Any = root
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                inside: Any = torch.nn.ModuleDict() if part in ("enc", "dec") else Persistent()
                if isinstance(inside, Persistent):
                    inside.class_name = "UNetBlock"
                module.add_module(part, inside)
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
    top = Persistent()
    top.class_name, top.model, top.sigma_min, top.sigma_max, top.sigma_data = outer, root, 0, float("inf"), 0.5  # type: ignore[assignment]
    return pickle.dumps({"ema": top, "dataset_kwargs": {}})


ARGUMENTS = {
    "img_resolution": 4, "in_channels": 1, "out_channels": 1, "model_channels": 4, "channel_mult": [1], "num_blocks": 1,
    "attn_resolutions": [],
}  # fmt: skip
NETWORK = {
    "_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8],
    "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def drawn(network: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def openai_state() -> dict[str, Tensor]:
    """The smallest network with OpenAI's names: one level, 32 channels."""
    w, g = 32, torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape, generator=g), torch.randn(shape[0], generator=g)

    def residual(name: str, cin: int) -> None:
        layer(f"{name}.in_layers.0", cin)
        layer(f"{name}.in_layers.2", w, cin, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * w, 4 * w)
        layer(f"{name}.out_layers.0", w)
        layer(f"{name}.out_layers.3", w, w, 3, 3)
        if cin != w:
            layer(f"{name}.skip_connection", w, cin, 1, 1)

    layer("time_embed.0", 4 * w, w)
    layer("time_embed.2", 4 * w, 4 * w)
    layer("input_blocks.0.0", w, 1, 3, 3)
    for name in ("input_blocks.1.0", "middle_block.0", "middle_block.2"):
        residual(name, w)
    for name in ("input_blocks.1.1", "middle_block.1"):
        layer(f"{name}.norm", w)
        layer(f"{name}.qkv", 3 * w, w, 1)
        layer(f"{name}.proj_out", w, w, 1)
    for i in range(2):
        residual(f"output_blocks.{i}.0", 2 * w)
        layer(f"output_blocks.{i}.1.norm", w)
        layer(f"output_blocks.{i}.1.qkv", 3 * w, w, 1)
        layer(f"output_blocks.{i}.1.proj_out", w, w, 1)
    layer("out.0", w)
    layer("out.2", 1, w, 3, 3)
    return state


def torch_bytes(values: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def whole_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Single files, and the files of a pipeline folder."""
    song = UNetConfig(4, 1, channels=4, channel_mult=(1,), blocks=1, attention=())
    net = UNet2D(
        UNet2DConfig(
            4, 1, (8, 8), 1, ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D"), groups=4, middle_groups=4
        )
    )
    state = openai_state()
    files = {
        "zip.pt": torch_bytes(collections.OrderedDict(state)),
        "legacy.pt": torch_bytes(state, legacy=True),
        "a.safetensors": save(state),
        "edm.pkl": edm(ARGUMENTS, drawn(UNet(song))),
    }
    folder = {
        "model_index.json": json.dumps(
            {"_class_name": "P", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        ).encode(),
        "scheduler/scheduler_config.json": json.dumps({"_class_name": "DDPMScheduler", "num_train_timesteps": 100}).encode(),
        "unet/config.json": json.dumps(NETWORK).encode(),
        "unet/diffusion_pytorch_model.safetensors": save(drawn(net)),
    }
    return files, folder


# ---- damage


def truncated(content: bytes, r: Random) -> bytes:
    return content[: r.randrange(len(content))]


def flipped(content: bytes, r: Random) -> bytes:
    out, near = bytearray(content), r.random() < 0.7  # most flips where the structure is, at both ends
    for _ in range(r.choice((1, 1, 2, 8))):
        span = min(len(out), 2000)
        at = (r.randrange(span) if r.random() < 0.5 else len(out) - 1 - r.randrange(span)) if near else r.randrange(len(out))
        out[at] ^= 1 << r.randrange(8)
    return bytes(out)


def overwritten(content: bytes, r: Random) -> bytes:
    at, n = r.randrange(len(content)), r.randrange(1, 40)
    return content[:at] + r.choice((b"\xff" * n, b"\0" * n, r.randbytes(n))) + content[at + n :]


def inserted(content: bytes, r: Random) -> bytes:
    at = r.randrange(min(len(content), 3000))
    return content[:at] + r.randbytes(r.randrange(1, 20)) + content[at + r.choice((0, 5)) :]


def spliced(content: bytes, r: Random) -> bytes:
    a, b = sorted(r.randrange(len(content)) for _ in range(2))
    return content[:b] + content[a:]


DAMAGE: tuple[Callable[[bytes, Random], bytes], ...] = (truncated, flipped, flipped, flipped, overwritten, inserted, spliced)


# ---- malice


def oversized(r: Random) -> tuple[str, bytes]:
    """Headers and lengths that promise gigabytes."""
    n = r.choice((1 << 31, 1 << 36, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, 100 << 20))
    text = json.dumps({"a": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}).encode()
    shape = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}).encode()
    return r.choice(
        (
            ("a.safetensors", struct.pack("<Q", n & (1 << 64) - 1) + b"{" + b" " * 50),
            ("b.safetensors", struct.pack("<Q", len(text)) + text + b"\0" * 16),
            ("c.safetensors", struct.pack("<Q", len(shape)) + shape + b"\0" * 4),
            ("a.pkl", b"\x80\x04\x8e" + struct.pack("<Q", n & (1 << 64) - 1) + b"x" * 9),
            ("b.pkl", b"\x80\x04\x8d" + struct.pack("<Q", n & (1 << 64) - 1) + b"x" * 9),
            ("c.pkl", b"\x80\x02N\x72" + struct.pack("<I", min(n, (1 << 31) - 1)) + b"."),
            ("d.pkl", b"\x80\x04\x95" + struct.pack("<Q", n & (1 << 64) - 1) + b"N."),
            ("e.pkl", b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"1."),
            ("f.pkl", b"\x80\x02ctorch\nFloatStorage\n" + b"(" * r.randrange(100) + b"."),
            ("a.pt", legacy_with(count=n >> 2)),
            ("b.pt", zip_with(count=n >> 2)),
            ("c.pt", zip_with(size=(n >> 2, 4), stride=(0, 0))),
            ("d.pt", zip_with(size=(4,), stride=(n >> 3,))),
            ("e.pt", zip_with(size=(1 << 30,) * 8, stride=(0,) * 8)),
        )
    )


def tensor_pickle(count: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """The description of one tensor, as torch writes it."""

    def number(n: int) -> bytes:
        return pickle.dumps(n, 2)[2:-1]

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX" + struct.pack("<I", len(key)) + key.encode()
    storage += b"X\x03\0\0\0cpu" + number(count) + b"tQ"
    tail = b"K\0" + numbers(size) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage + tail + b"s."


def zip_with(
    count: int = 4,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    key: str = "0",
    begin: str = "archive",
    more: dict[str, bytes] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{begin}/data.pkl", tensor_pickle(count, size, stride, key))
        archive.writestr(f"{begin}/data/0", b"\0" * 16)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def legacy_with(count: int) -> bytes:
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    out = b"".join(pickle.dumps(part, 2) for part in parts)
    return out + tensor_pickle(count, (4,), (1,)) + pickle.dumps(["0"], 2) + struct.pack("<q", count % (1 << 62)) + b"\0" * 16


def traversing(r: Random) -> tuple[str, bytes]:
    """Names that lead out of the file."""
    bad = r.choice(
        ("../x", "archive/../../x", "/etc/passwd", "archive/..", "archive\\..\\x", "archive/data/../../../x", "other/y")
    )
    return r.choice(
        (
            ("a.pt", zip_with(more={bad: b"x"})),
            ("b.pt", zip_with(key=bad)),
            ("c.pt", zip_with(key="../data.pkl")),
            ("d.pt", zip_with(begin="..")),
            ("e.pt", zip_with(more={"archive/data/1": b"\0" * (1 << 20)}, method=zipfile.ZIP_DEFLATED)),
            ("f.pt", zip_with(more={"archive/byteorder": b"big"})),
            ("g.pt", zip_with(begin="a/b")),
        )
    )


def command(module: str, name: str, argument: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode() + b"(X" + struct.pack("<I", len(argument)) + argument.encode() + b"tR"


NAMES = """
os system,posix system,nt system,builtins eval,builtins exec,builtins open,builtins __import__,builtins bytearray,
subprocess Popen,subprocess check_output,torch load,torch.hub load,torch.jit load,torch ops,numpy load,pickle loads,
importlib import_module,webbrowser open,shutil rmtree,torch_utils.persistence _src_to_module,functools partial,
torch.storage _load_from_bytes.__globals__,torch._utils _rebuild_tensor_v2.__globals__,copyreg _reconstructor,
types CodeType,runpy run_path,builtins compile,operator attrgetter
""".replace("\n", "").split(",")


def bomb(r: Random) -> tuple[str, bytes]:
    """Pickles that would run, grow without end, or nest."""
    module, _, name = r.choice(NAMES).rpartition(" ")
    run = command(module, name, "echo ran > ran")
    laughs = (
        b"\x80\x02]q\0"
        + b"".join(b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(40))
        + b"."
    )
    ema = b"\x80\x02}X\x03\0\0\0ema"
    meta = (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n(}(X\x0a\0\0\0class_nameX\x0a\0\0\0EDMPrecondX\x05\0\0\0state"
    )
    nested = pickle.dumps(torch_bytes({"a": torch.zeros(2)}, legacy=True), 4)[2:-1]
    bodies: tuple[bytes, ...] = (
        b"\x80\x02" + run + b".",
        ema + run + b"s.",
        b"\x80\x04" + run + b"0N.",
        laughs,
        ema + laughs[2:-1] + b"s.",
        ema + meta + laughs[2:-1] + b"utRs.",
        ema + meta + b"}utRs.",
        ema + meta + run + b"utRs.",
        b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b".",
        b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
        b"\x80\x02N" + b"2" * 50_000 + b"t.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + nested + b"tR.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\n(" + (b"N" if r.random() < 0.5 else b"K\x01") + b"tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0xK\x01sb.",
        b"\x80\x02ctorch\nFloatStorage\n)\x81}X\x05\0\0\0dtypeK\x01sb.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x08\0\0\0__class__K\x01sb.",
        b"\x80\x02ctorch.nn.modules.container\nModuleDict\n)\x81}X\x05\0\0\0stateK\x01sb.",
        b"\x80\x04\x82\x01.",
        b"\x80\x02I" + b"9" * 9000 + b"\n.",
        b"\x80\x02(dq\0h\0h\0s.",
    )
    body = r.choice(bodies)
    if r.random() < 0.3:  # the same inside a zip file
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", body)
        return "bomb.pt", buffer.getvalue()
    return "bomb.pkl", body


def wrong_architecture(r: Random) -> tuple[str, bytes]:
    """Files that are whole and describe or hold another network than they should."""
    state = openai_state()
    name = r.choice(list(state))
    which = r.randrange(6)
    if which == 0:
        del state[name]
    elif which == 1:
        state[name] = torch.zeros(r.choice(((), (0,), (3, 5), (7,) * 4, (2,))))
    elif which == 2:
        state[f"{r.choice(('input_blocks', 'output_blocks'))}.{r.choice((2, 7, 999, 99999))}.0.{name}"] = torch.zeros(2)
    elif which == 3:
        state[name] = state[name].to(r.choice((torch.int64, torch.bool, torch.uint8)))
    elif which == 4:
        state = {k.replace("in_layers", "layers"): v for k, v in state.items()}
    else:
        value = r.choice((0, -1, 3, 10**6, 10**12, 2**70, 1.5, "4", None, [], [10**9] * 60, {"a": 1}, True))
        key = r.choice([*ARGUMENTS, "surprise", "encoder_type", "embedding_type", "label_dim", "resample_filter"])
        net = drawn(UNet(UNetConfig(4, 1, channels=4, channel_mult=(1,), blocks=1, attention=())))
        kinds = r.choice((("EDMPrecond", "SongUNet"), ("EDMPrecond", "DhariwalUNet"), ("VPPrecond", "SongUNet"), ("X", "Y")))
        return "a.pkl", edm({**ARGUMENTS, key: value}, net, *kinds)
    return r.choice(
        (("a.pt", torch_bytes(state)), ("b.pt", torch_bytes(state, legacy=True)), ("c.safetensors", save(contiguous(state))))
    )


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.contiguous() for k, v in state.items()}


def wrong_folder(folder: dict[str, bytes], r: Random) -> dict[str, bytes]:
    """A pipeline folder with one value that no such folder has."""
    out = dict(folder)
    name = r.choice([n for n in folder if n.endswith(".json")])
    values = json.loads(out[name])
    key = r.choice([*values, "surprise", "beta_start", "prediction_type", "attention_head_dim", "num_class_embeds"])
    bad: Any = r.choice(
        (0, -1, 10**9, 2**70, 1e308, float("nan"), None, "x", [], ["a"] * 99, [10**9] * 2, {"a": {}}, "../../x", True)
    )
    values[key] = bad
    out[name] = json.dumps(values).encode()
    if r.random() < 0.2:
        out[name] = r.choice((b"[" * 100_000, b'{"a":' * 50_000, b"null", b"\xff\xfe", b"{}", b""))
    if r.random() < 0.2:
        place = r.choice(("../model_index.json", "/etc/passwd", "..", "", "a/b", "diffusion_pytorch_model.safetensors", 7))
        out["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
            {"weight_map": {"conv_in.weight": place}}
        ).encode()
        out.pop("unet/diffusion_pytorch_model.safetensors")
    return out


# ---- the run


def attempt(path: Path, counts: collections.Counter[str], kind: str) -> None:
    global watching
    watching = True
    try:
        atonce.load(path)
    except InputError as error:
        text = str(error)
        if "\n" in text or not 10 < len(text) < 1500:
            sys.exit(f"{kind}: not one clear line: {text[:400]!r}")
        counts[f"{kind}: refused"] += 1
    else:
        counts[f"{kind}: opened"] += 1
    finally:
        watching = False


def main(cases: int, seed: int, place: Path) -> None:
    sys.addaudithook(watch)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    files, folder = whole_files()
    counts: collections.Counter[str] = collections.Counter()

    def write(content: dict[str, bytes], to: Path) -> None:
        for name, part in content.items():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(part)

    os.chdir(place)
    for name, content in files.items():  # whole ones open, so that damage is what refuses the others; and imports are done
        (place / name).write_bytes(content)
        assert atonce.load(place / name).sample(1, steps=1).isfinite().all()
    write(folder, place / "whole")
    assert atonce.load(place / "whole").sample(1, steps=1).isfinite().all()
    with torch.device("meta"):  # so are the modules of torch that this needs
        UNet(UNetConfig(4, 1, channels=4, channel_mult=(1,), blocks=1, attention=()))
    save_file({"a": torch.zeros(1)}, place / "none.safetensors")
    needed = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (needed + _SPARE, needed + _SPARE))
    for case in range(cases):
        r = Random(f"{seed}-{case}")
        which = r.randrange(10)
        if which < 4:
            name = r.choice(list(files))
            damage = r.choice(DAMAGE)
            path = place / f"case-{name}"
            path.write_bytes(damage(files[name], r))
            attempt(path, counts, damage.__name__)
        elif which < 6:
            target = place / "folder"
            shutil.rmtree(target, ignore_errors=True)
            content = dict(folder)
            if which == 4:
                content = wrong_folder(folder, r)
            else:
                name = r.choice(list(content))
                content[name] = r.choice(DAMAGE)(content[name], r)
            write(content, target)
            attempt(target, counts, "folder, values" if which == 4 else "folder, damage")
        else:
            make = (oversized, traversing, bomb, wrong_architecture)[which - 6]
            name, raw = make(r)
            path = place / f"case-{name}"
            path.write_bytes(raw)
            attempt(path, counts, make.__name__)
    assert not list(place.rglob("ran"))
    print(json.dumps(dict(counts)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
