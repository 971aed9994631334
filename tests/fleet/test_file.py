"""The fleet file: its values and defaults, and a line for each fault. `# <-` marks the lines that must be named."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokka.errors import ConfigurationError, StartupError
from tokka.fleet.address import Address
from tokka.fleet.file import FleetFile, read_fleet_file
from tokka.fleet.spec import ModelSpec, Resources

FULL = """\
join: 0.0.0.0:7401
join_token_file: /run/tokka/join-token
hold: 1m
local: {gpus: 16, memory: 256GiB}
models:
  poro:
    model: /models/poro
    aliases: [poro-chat, poro-34b]
    launcher: local
    replicas: {min: 1, max: 2}
    idle_after: 30s
    resources: {gpus: 8, memory: 64GiB}
    settings:
      max_model_len: 2048
      kv_cache_memory: 4GiB
      engine_arg: [seed=1, 'hf_overrides={"a": 1, "b": 2}']
  LumiOpen/Viking-7B:
"""


def read(folder: Path, text: str | bytes) -> FleetFile:
    path = folder / "fleet.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_fleet_file(path)


def faults(folder: Path, text: str | bytes) -> list[str]:
    """Return the lines of the refusal, each without the path of the file."""
    with pytest.raises(ConfigurationError) as refused:
        read(folder, text)
    return [line.removeprefix(f"{folder / 'fleet.yaml'}:") for line in str(refused.value).split("\n")]


def model(folder: Path, text: str) -> ModelSpec:
    """Return the model `a` of a file, whose entry has these keys as a flow map."""
    return read(folder, f"models: {{a: {text}}}").models[0]


# -- values


def test_file_holds_all_keys(tmp_path: Path) -> None:
    file = read(tmp_path, FULL)
    poro, viking = file.models
    assert (file.join, file.join_token_file, file.hold_s) == (
        Address("0.0.0.0", 7401),
        Path("/run/tokka/join-token"),
        60,
    )
    assert file.launchers == {"local": {"gpus": 16, "memory": 256 << 30}}
    assert (poro.name, poro.aliases, poro.model) == ("poro", ("poro-chat", "poro-34b"), "/models/poro")
    assert (poro.launcher, poro.min_replicas, poro.max_replicas, poro.idle_after_s) == ("local", 1, 2, 30)
    assert poro.resources == Resources(8, 64 << 30)
    assert poro.settings == {
        "max_model_len": 2048,
        "kv_cache_memory": "4GiB",
        "engine_arg": ["seed=1", 'hf_overrides={"a": 1, "b": 2}'],
    }
    assert (poro.line, viking.line) == (6, 17)


def test_missing_keys_have_defaults(tmp_path: Path) -> None:
    file = read(tmp_path, "models:\n  LumiOpen/Viking-7B:\n")
    (viking,) = file.models
    assert (file.join, file.join_token_file, file.hold_s, file.launchers) == (Address("127.0.0.1", 7400), None, 0, {})
    assert viking == ModelSpec(
        name="LumiOpen/Viking-7B", aliases=(), model="LumiOpen/Viking-7B", settings={}, revision=viking.revision, line=2
    )


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("90", 90), ("0.5", 0.5), ("0", 0)]
)
def test_duration_has_a_unit_or_is_in_seconds(tmp_path: Path, written: str, seconds: float) -> None:
    assert model(tmp_path, f"{{idle_after: {written}}}").idle_after_s == seconds


@pytest.mark.parametrize("written", ["67108864", "64MiB", "64M", "0.0625 GiB"])
def test_memory_is_a_size(tmp_path: Path, written: str) -> None:
    assert model(tmp_path, f"{{resources: {{memory: {written}}}}}").resources == Resources(0, 64 << 20)


def test_max_replicas_is_min_if_only_min_is_given(tmp_path: Path) -> None:
    assert model(tmp_path, "{replicas: {min: 3}}").max_replicas == 3


def test_names_may_look_like_other_types(tmp_path: Path) -> None:
    file = read(tmp_path, "models:\n  on:\n    aliases: [7, 3.10, 2001-01-01]\n")
    assert (file.models[0].name, file.models[0].aliases) == ("on", ("7", "3.10", "2001-01-01"))


def test_settings_do_not_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_MAX_MODEL_LEN", "no number")
    assert model(tmp_path, "{settings: {dtype: float16}}").settings == {"dtype": "float16"}


def test_null_setting_is_the_default(tmp_path: Path) -> None:
    assert model(tmp_path, "{settings: {max_model_len: null, enforce_eager: false}}").settings == {
        "enforce_eager": False
    }


# -- revisions


@pytest.mark.parametrize(
    "other",
    [
        "{model: n}",
        "{model: m, settings: {dtype: float16}}",
        "{model: m, resources: {gpus: 1}}",
        "{model: m, resources: {memory: 1G}}",
    ],
)
def test_revision_changes_with_the_start_of_a_worker(tmp_path: Path, other: str) -> None:
    assert model(tmp_path, other).revision != model(tmp_path, "{model: m}").revision


@pytest.mark.parametrize("other", ["replicas: {max: 2}", "idle_after: 1s", "aliases: [b]", "settings: {}"])
def test_revision_stays_if_a_start_would_be_the_same(tmp_path: Path, other: str) -> None:
    assert model(tmp_path, f"{{model: m, {other}}}").revision == model(tmp_path, "{model: m}").revision


def test_revision_does_not_depend_on_notation(tmp_path: Path) -> None:
    one = model(tmp_path, "{settings: {max_model_len: 2048, dtype: float16}}")
    assert model(tmp_path, '{settings: {dtype: "float16", max_model_len: "2048"}}').revision == one.revision


# -- faults

POOL = "local: {gpus: 4, memory: 8GiB}\n"
WRONG: dict[str, tuple[str, str]] = {
    "unknown key": ("model: {}  # <-\n", "model: there is no such key; did you mean models?"),
    "unknown key of a model": (
        "models:\n  a:\n    replica: 2  # <-\n",
        "models.a.replica: there is no such key; did you mean replicas?",
    ),
    "unknown key, unlike any": (
        "models: {a: {replicas: {zz: 2}}}  # <-\n",
        "models.a.replicas.zz: there is no such key; known are min, max",
    ),
    "no models": ("join: 127.0.0.1:1\n", "models: it must describe at least one model"),
    "empty models": ("models: {}\n", "models: it must describe at least one model"),
    "empty file": ("", "models: it must describe at least one model"),
    "no map": ("- a\n", "it must hold `key: value` lines"),
    "text for a map": ("models:\n  a:\n    replicas: 2  # <-\n", "models.a.replicas: it must hold `key: value` lines"),
    "text for a list": (
        "models:\n  a:\n    aliases: b  # <-\n",
        "models.a.aliases: it must be a list, for example [a, b]",
    ),
    "list for text": ("models:\n  a:\n    model: [b]  # <-\n", "models.a.model: it must be text"),
    "nothing for text": ("models:\n  a:\n    model:  # <-\n", "models.a.model: it must be text"),
    "key that is no text": ("models:\n  a: {}\n  [b]: {}  # <-\n", "models.[...]: a key must be text"),
    "key twice": (
        "models:\n  a:\n    model: b\n    model: c  # <-\n",
        "models.a.model: line 3 has the same key; remove one of them",
    ),
    "model twice": ("models:\n  a:\n  a:  # <-\n", "models.a: line 2 has the same key; remove one of them"),
    "name of another": (
        "models:\n  a:\n    aliases:\n      - b\n  b:  # <-\n",
        "models.b: line 4 gives the name b, too; every name must be different",
    ),
    "alias of its own": (
        "models:\n  a:\n    aliases:\n      - b\n      - a  # <-\n",
        "models.a.aliases: line 2 gives the name a, too; every name must be different",
    ),
    "empty name": (
        'models:\n  "": {}  # <-\n',
        "models.: a model's name must have 1 to 512 characters, all of them printable",
    ),
    "name with a line end": (
        'models:\n  "a\\nb": {}  # <-\n',
        "models.'a\\nb': a model's name must have 1 to 512 characters, all of them printable",
    ),
    "long alias": (
        f"models:\n  a:\n    aliases:\n    - {'b' * 513}  # <-\n",
        "models.a.aliases: a model's name must have 1 to 512 characters, all of them printable",
    ),
    "join without a port": (
        "models: {a: }\njoin: localhost  # <-\n",
        'join: it must be HOST:PORT, for example 127.0.0.1:7400 or "[::1]:7400"',
    ),
    "hold": (
        "models: {a: }\nhold: 2h  # <-\n",
        "hold: 2h is not a duration from 0 to 1h; write for example 30s, 5m or 1h",
    ),
    "idle_after": (
        "models:\n  a:\n    idle_after: 5 min  # <-\n",
        "models.a.idle_after: 5 min is not a duration from 0 to 720h; write for example 30s, 5m or 1h",
    ),
    "negative duration": (
        "models:\n  a:\n    idle_after: -1  # <-\n",
        "models.a.idle_after: -1 is not a duration from 0 to 720h; write for example 30s, 5m or 1h",
    ),
    "max": (
        "models:\n  a:\n    replicas:\n      max: 0  # <-\n",
        "models.a.replicas.max: 0 is not a whole number from 1 to 1024",
    ),
    "min": (
        "models:\n  a:\n    replicas:\n      min: 1.5  # <-\n",
        "models.a.replicas.min: 1.5 is not a whole number from 0 to 1024",
    ),
    "long number": (
        f"models:\n  a:\n    replicas:\n      min: {'9' * 100}  # <-\n",
        f"models.a.replicas.min: {'9' * 80}... is not a whole number from 0 to 1024",
    ),
    "min above max": (
        "models:\n  a:\n    replicas:\n      min: 2\n      max: 1  # <-\n",
        "models.a.replicas.max: 1 is less than min, which is 2; raise max or lower min",
    ),
    "unknown launcher": (
        "models:\n  a:\n    launcher: locl  # <-\n",
        "models.a.launcher: locl is not known; did you mean local?",
    ),
    "launcher of a later version": (
        "models:\n  a:\n    launcher: slurm  # <-\n",
        "models.a.launcher: this version has no launcher slurm; available: local",
    ),
    "block of a later version": (
        "models: {a: }\nray: {}  # <-\n",
        "ray: this version has no launcher ray; available: local",
    ),
    "gpus": (
        "models:\n  a:\n    resources:\n      gpus: two  # <-\n",
        "models.a.resources.gpus: two is not a whole number from 0 to 1024",
    ),
    "memory": (
        "models:\n  a:\n    resources:\n      memory: 64  # <-\n",
        "models.a.resources.memory: 64 is not a size of 64MiB or more; write for example 64GiB or 512MiB",
    ),
    "memory of the machine": (
        "models: {a: }\nlocal:\n  memory: much  # <-\n",
        "local.memory: much is not a size of 64MiB or more; write for example 64GiB or 512MiB",
    ),
    "more GPUs than exist": (
        POOL + "models:\n  a:\n    resources:\n      gpus: 8  # <-\n",
        "models.a.resources.gpus: a replica takes 8 GPUs, but `local` has 4 GPUs; lower this, or raise local.gpus if"
        " the machine has more",
    ),
    "more memory than exists": (
        POOL + "models:\n  a:\n    resources:\n      memory: 9GiB  # <-\n",
        "models.a.resources.memory: a replica takes 9GiB, but `local` has 8GiB; lower this, or raise local.memory if"
        " the machine has more",
    ),
    "more running replicas than fit": (
        POOL + "models:\n"
        "  a:\n    replicas: {min: 1}\n    resources: {gpus: 2}\n"
        "  b:\n    replicas: {min: 2, max: 2}\n    resources: {gpus: 2}  # <-\n",
        "models.b.resources.gpus: with the models above, the replicas that always run take 6 GPUs, but `local` has"
        " 4 GPUs; lower this, or raise local.gpus if the machine has more",
    ),
    "unknown setting": (
        "models:\n  a:\n    settings:\n      max-model-len: 5  # <-\n",
        "models.a.settings.max-model-len: there is no such key; did you mean max_model_len?",
    ),
    "setting of the gateway": (
        "models:\n  a:\n    settings:\n      api_key: k  # <-\n",
        "models.a.settings.api_key: there is no such key; see docs/settings.md",
    ),
    "setting of another place": (
        "models:\n  a:\n    settings:\n      model: b  # <-\n",
        "models.a.settings.model: not here; write it as `model:` of the entry",
    ),
    "name in the settings": (
        "models:\n  a:\n    settings:\n      served_model_name: b  # <-\n",
        "models.a.settings.served_model_name: not here; the entry's key is the name; write further ones as `aliases:`"
        " of the entry",
    ),
    "embedding model in the settings": (
        "models:\n  a:\n    settings:\n      embedding_model: b  # <-\n",
        "models.a.settings.embedding_model: not here; give the embedding model an entry of its own",
    ),
    "bound of a setting": (
        "models:\n  a:\n    settings:\n      dtype: float16\n      max_model_len: 0  # <-\n",
        "models.a.settings.max_model_len: Input should be greater than or equal to 1",
    ),
    "size in the settings": (
        "models:\n  a:\n    settings:\n      kv_cache_memory: lots  # <-\n",
        "models.a.settings.kv_cache_memory: 'lots' is not a size; write for example 4GiB or 512MiB",
    ),
    "list item of a setting": (
        "models:\n  a:\n    settings:\n      engine_arg: [a=1, hf_secret]  # <-\n",
        "models.a.settings.engine_arg: item 2 of 2 is not NAME=VALUE",
    ),
    "engine argument that the environment would split": (
        "models:\n  a:\n    settings:\n      engine_arg: ['a=1,b=2']  # <-\n      dtype: auto\n",
        "models.a.settings.engine_arg: a comma with NAME= behind it begins another item; leave the comma out",
    ),
    "huge setting": (
        f"models:\n  a:\n    settings:\n      engine_arg: [{', '.join(['a=' + 'b' * 60_000] * 2)}]  # <-\n",
        "models.a.settings.engine_arg: it has more than 100000 bytes",
    ),
    "forged number": (
        "models:\n  a:\n    settings:\n      max_model_len: !!int abc  # <-\n",
        "models.a.settings.max_model_len: it is not a number",
    ),
    "NUL in a setting": (
        'models:\n  a:\n    settings:\n      quantization: "a\\0"  # <-\n',
        "models.a.settings.quantization: it must have 1 to 100000 characters, all of them printable",
    ),
    "half a character": (
        'models:\n  a:\n    model: "\\ud800"  # <-\n',
        "models.a.model: it must have 1 to 4096 characters, all of them printable",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_fault_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    marked = [number for number, line in enumerate(text.splitlines(), start=1) if line.endswith("# <-")] or [1]
    assert faults(tmp_path, text) == [f"{marked[0]}: {message}"]


def test_all_faults_are_told_in_the_order_of_lines(tmp_path: Path) -> None:
    text = "models:\n  a:\n    model: []\n    replicas: {max: 0}\n    settings: {dtype: int4}\nhold: x\njoin: y\n"
    lines = faults(tmp_path, text)
    assert [line.split(":")[0] for line in lines] == ["3", "4", "5", "6", "7"]


def test_number_of_told_faults_is_bounded(tmp_path: Path) -> None:
    lines = faults(tmp_path, "models: {a: }\n" + "".join(f"k{number}: 1\n" for number in range(1000)))
    assert (len(lines), lines[-1]) == (51, " 950 more faults")


def test_length_of_a_told_fault_is_bounded(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, f"models: {{a: }}\nmodels{'s' * 100_000}: 1\n")
    assert len(line) < 600


def test_fault_does_not_quote_a_setting(tmp_path: Path) -> None:
    text = "models: {a: {settings: {engine_arg: hf_token_0123, engine: hf_token_0123, dtype: hf_token_0123}}}"
    assert "0123" not in " ".join(faults(tmp_path, text))


# -- files that are no fleet files


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"--fleet: cannot read .*: No such file"):
        read_fleet_file(tmp_path / "none.yaml")


def test_large_file_is_refused(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, b"#" * ((1 << 20) + 1))
    assert line.endswith("is larger than 1048576 bytes; name the right file")


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "not UTF-8": (b"models:\n  a: \xff\n", "2: the file is not UTF-8 text"),
    "control character": ("models:\n  a: \x00\n", "2: control characters are not allowed in YAML"),
    "syntax": (
        "models:\n  a: [token_0123\n",
        "3: column 1: this is not YAML; check indentation, quotes and brackets",
    ),
    "second document": ("a: b\n---\nc: d\n", "2: column 1: this is not YAML; check indentation, quotes and brackets"),
    "alias": ("models:\n  a: &a {}\n  b: *a\n", "3: aliases are not supported; write the value out"),
    "merge": ("models:\n  a: &a {}\n  b: {<<: *a}\n", "3: aliases are not supported; write the value out"),
    "depth": ("\n" + "[" * 500_000, "2: the file has more than 20000 values or 16 levels"),
    "count": ("- a\n" * 200_000, "20000: the file has more than 20000 values or 16 levels"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_yaml_is_one_line_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert faults(tmp_path, text) == [message]


def test_impossible_escape_is_one_line(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, 'models: {"\\UFFFFFFFF": }')
    assert line.endswith("a \\U escape is not a character; correct it")


PARTS = ["models:", "a", "join:", "hold:", "settings:", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ": ", ", ", "- "]
PARTS += ["!!int ", "!!bool x", "&a ", "*a", "? ", "1:2:3", "0b1", "'", '"', "\\", "<<", "=", "| ", "%YAML 1.1", "---"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=20))
def test_any_text_is_read_or_refused(tmp_path: Path, parts: list[Any]) -> None:
    with contextlib.suppress(StartupError):
        assert read(tmp_path, "".join(parts).encode(errors="surrogatepass")).models
