"""Settings: the precedence is flags, environment, file, defaults. The message for a mistake names its place."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokka.errors import StartupError
from tokka.loopback import is_loopback
from tokka.settings import EMBEDDED_MODEL, Settings, load_settings, parse_size

pytestmark = pytest.mark.usefixtures("bare_environment")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "tokka.yaml"


def refusal(flags: dict[str, Any], config: Path | None = None) -> str:
    with pytest.raises(StartupError) as refused:
        load_settings(flags, config)
    return str(refused.value)


# -- precedence -------------------------------------------------------------------------------------------------


def test_without_anything_the_defaults_stand() -> None:
    settings = load_settings({})
    assert (settings.port, settings.host, settings.engine) == (8000, "127.0.0.1", "vllm")


def test_the_file_wins_over_the_default(config: Path) -> None:
    config.write_text("port: 1001\n")
    assert load_settings({}, config).port == 1001


def test_the_environment_wins_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port: 1001\n")
    monkeypatch.setenv("TOKKA_PORT", "1002")
    assert load_settings({}, config).port == 1002


def test_a_flag_wins_over_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port: 1001\n")
    monkeypatch.setenv("TOKKA_PORT", "1002")
    assert load_settings({"port": 1003}, config).port == 1003


def test_settings_merge_all_sources(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("max_waiting: 7\n")
    monkeypatch.setenv("TOKKA_LOG_LEVEL", "error")
    settings = load_settings({"port": 1003}, config)
    assert (settings.max_waiting, settings.log_level, settings.port) == (7, "error", 1003)


def test_a_list_of_a_higher_source_replaces_the_lower_one_s(config: Path) -> None:
    config.write_text("api_key: [from-the-file]\n")
    assert load_settings({"api_key": ["from-the-flag"]}, config).api_key == ["from-the-flag"]


def test_the_environment_may_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("port: 1001\n")
    monkeypatch.setenv("TOKKA_CONFIG", str(config))
    assert load_settings({}).port == 1001


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_PORT", "")
    assert load_settings({}).port == 8000


def test_a_list_in_the_environment_is_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_SERVED_MODEL_NAME", "one, two,,three")
    assert load_settings({}).served_model_name == ["one", "two", "three"]


def test_a_list_in_the_file_may_be_yaml_or_commas(config: Path) -> None:
    config.write_text("served_model_name: [one, two]\ncors-origin: https://a, https://b\n")
    settings = load_settings({}, config)
    assert (settings.served_model_name, settings.cors_origin) == (["one", "two"], ["https://a", "https://b"])


def test_options_in_the_file_may_be_written_as_on_the_command_line(config: Path) -> None:
    config.write_text("max-waiting: 7\n")
    assert load_settings({}, config).max_waiting == 7


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}\n"])
def test_an_empty_file_changes_nothing(config: Path, content: str) -> None:
    config.write_text(content)
    assert load_settings({}, config).port == 8000


# -- mistakes name their place ----------------------------------------------------------------------------------


def test_a_wrong_flag_is_named_as_a_flag() -> None:
    assert refusal({"max_waiting": -1}).startswith("--max-waiting: ")


def test_a_wrong_variable_is_named_as_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKKA_PORT", "many")
    assert refusal({}).startswith("TOKKA_PORT: ")


def test_a_wrong_line_is_named_with_its_file(config: Path) -> None:
    config.write_text("port: 70000\n")
    assert refusal({}, config).startswith(f"port in {config}: ")


def test_an_unknown_option_in_the_file_is_named(config: Path) -> None:
    config.write_text("prot: 8000\n")
    assert refusal({}, config) == f"the config file {config} has an unknown option 'prot'"


def test_a_missing_file_is_named(config: Path) -> None:
    assert refusal({}, config).startswith(f"cannot read the config file {config}: ")


@pytest.mark.parametrize("content", ["port: [1\n", "\tport: 1\n"])
def test_a_file_that_is_no_yaml_is_named_in_one_line(config: Path, content: str) -> None:
    config.write_text(content)
    message = refusal({}, config)
    assert f"{config} is not YAML" in message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_named(config: Path) -> None:
    config.write_bytes(b"\xff\xfe\xfa")
    assert "is not YAML" in refusal({}, config)


@pytest.mark.parametrize("content", ["- port\n", "8000\n", "text\n"])
def test_a_file_without_options_is_refused(config: Path, content: str) -> None:
    config.write_text(content)
    assert "must hold `option: value` lines" in refusal({}, config)


@pytest.mark.parametrize(
    "flags",
    [
        *({"port": -1}, {"port": 65536}, {"tensor_parallel_size": 0}, {"max_model_len": 0}, {"max_num_seqs": 0}),
        *({"dtype": "int3"}, {"engine": "other"}, {"log_level": "loud"}, {"keep_alive_interval": 0}),
        *({"request_timeout": 0}, {"drain_timeout": -1}, {"max_completion_tokens": 0}, {"engine_arg": ["x"]}),
        *({"max_body_size": "much"}, {"max_body_size": "0"}, {"kv_cache_memory": "-1GiB"}, {"max_header_size": ""}),
        *({"keep_alive_interval": float("nan")}, {"request_timeout": float("nan")}),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_flag(flags: dict[str, Any]) -> None:
    (name,) = flags
    message = refusal(flags)
    assert message.startswith(f"--{name.replace('_', '-')}: ")
    assert "\n" not in message


@pytest.mark.parametrize("key", ["", "with a space", "tk-ä-long-enough", "line\nbreak-long", "tab\tlong-enough"])
def test_a_weak_key_is_refused_without_repeating_it(key: str) -> None:
    message = refusal({"api_key": ["a-good-key-that-stays", key]})
    assert message.startswith("--api-key: ")
    assert "good-key" not in message
    assert not key or key not in message


def test_fleet_refuses_settings_of_one_model(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("dtype: float16\nport: 1001\n")
    monkeypatch.setenv("TOKKA_MAX_MODEL_LEN", "64")
    assert refusal({"fleet": Path("fleet.yaml"), "model": "poro"}, config) == (
        "--fleet: remove MODEL, --dtype, --max-model-len; in fleet.yaml, each entry of `models` has its `model` and its"
        " engine's `settings`"
    )


def test_fleet_takes_settings_of_the_server(config: Path) -> None:
    config.write_text("fleet: fleet.yaml\nport: 1001\n")
    assert load_settings({"max_waiting": 5}, config).fleet == Path("fleet.yaml")


# -- nothing is exposed by accident -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_serving_beyond_loopback_needs_keys(host: str) -> None:
    assert load_settings({"host": host}).needs_keys


@pytest.mark.parametrize("flags", [{"no_auth": True}, {"uds": "/run/tokka.sock"}])
def test_serving_beyond_loopback_is_allowed_when_meant(flags: dict[str, Any]) -> None:
    assert not load_settings({"host": "0.0.0.0", **flags}).needs_keys


def test_a_database_counts_as_asked_for_wherever_that_was_said(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_settings({}).names_database
    config.write_text("state_dir: /srv/tokka\n")
    assert load_settings({}, config).names_database
    monkeypatch.setenv("TOKKA_DATABASE_URL", "postgresql://host/name")
    assert load_settings({}).names_database


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert load_settings({"host": host}).on_loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org", "127.1"]
)
def test_lookalike_host_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


# -- sizes and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1073741824", 2**30),
        ("4GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("4GB", 4 * 2**30),
        ("4G", 4 * 2**30),
        ("512M", 512 * 2**20),
        ("64KiB", 64 * 2**10),
        ("1.5GiB", 3 * 2**29),
        ("2T", 2 * 2**40),
        ("100B", 100),
        (" 8 MiB ", 8 * 2**20),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "much", "4 elephants", "GiB", "4GiBiB", "1e", "0x10", "nan", "inf", "1,5G", "4XB"]
)
def test_invalid_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="for example 4GiB"):
        parse_size(text)


@given(st.text("0123456789.eE+-kKmMgGtTiIbB naf", max_size=12))
@example("1e999")
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_size(text), int)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, (EMBEDDED_MODEL,)),
        ({"engine": "fake"}, ("fake",)),
        ({"model": "org/name"}, ("org/name",)),
        ({"model": "org/name", "served_model_name": ["a", "b"]}, ("a", "b")),
    ],
)
def test_names_of_the_model(flags: dict[str, Any], names: tuple[str, ...]) -> None:
    assert load_settings(flags).names() == names


def test_a_local_folder_goes_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "poro").mkdir()
    assert load_settings({"model": str(tmp_path / "poro")}).names() == ("poro",)


def test_state_and_cache_follow_the_desktop_s_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = load_settings({})
    assert (settings.state_dir, settings.cache_dir) == (tmp_path / "state" / "tokka", tmp_path / "cache" / "tokka")


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
