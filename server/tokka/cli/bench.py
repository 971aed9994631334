"""`tokka bench`: puts a load on a running server and prints the measurements."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from tokka.bench.session import Line, Load, Session
    from tokka.bench.trace import Trace as TraceSource

# Maximum requests per second of one load.
MAX_RATE = 100_000
# Maximum simulated users of one load. A client has about this many ports to one server.
MAX_CONCURRENCY = 60_000
PICTURES = (".png", ".svg", ".pdf")

Api = Literal["chat", "completions"]
# Options of `bench`. Written inside its signature, they would not fit on a screen.
Rate = Annotated[list[str] | None, typer.Option(help="Open loop: requests per second, Poisson. Repeat, or 1,2,4.")]
Concurrency = Annotated[
    list[str] | None, typer.Option(help="Closed loop: simulated users. Repeat, or 1,2,4. Default: 1.")
]
Burst = Annotated[int, typer.Option(min=1, max=10_000, help="Open loop: requests per arrival, at the same total rate.")]
Duration = Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds for which each run sends requests.")]
Warmup = Annotated[float, typer.Option(min=0, help="First seconds of --duration, which do not count.")]
Grace = Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait for in-flight requests after --duration.")]
Requests = Annotated[int, typer.Option(min=1, max=1_000_000, help="Maximum requests per run, warm-up included.")]
Connections = Annotated[int, typer.Option(min=1, max=60_000, help="Maximum open connections. Further requests wait.")]
PromptTokens = Annotated[
    str, typer.Option(help="Length of synthetic prompts in words of about one token. Or a range, 20-8000.")
]
SamePrompt = Annotated[
    bool, typer.Option("--same-prompt", help="Send one synthetic prompt every time, so that its prefix is cached.")
]
MaxTokens = Annotated[str, typer.Option(help="Tokens per completion. Or a range, 1-800.")]
Trace = Annotated[
    str | None,
    typer.Option(help="Open loop: arrivals and lengths of a CSV, at its rate or at --rate.", metavar="FILE|made"),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="One prompt per line. In a .jsonl: one {'prompt'} or {'messages'} per line.", metavar="FILE"),
]
IgnoreEos = Annotated[
    bool | None, typer.Option(help="Generate exactly --max-tokens. Default: yes, but no with --prompts.")
]
ApiKey = Annotated[
    str, typer.Option(envvar="TOKKA_API_KEY", help="API key, sent as a bearer token.", show_default=False)
]
Pid = Annotated[
    int | None, typer.Option(help="Process id of the server, for CPU figures. Default: the local listener of the URL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Out = Annotated[Path | None, typer.Option(help="Append one line of JSON per run.", metavar="FILE")]
Compare = Annotated[str | None, typer.Option(help="Second server. Each round loads both in turn.", metavar="URL")]
CompareModel = Annotated[str | None, typer.Option(help="Model of the second server. Default: --model.")]
CompareKey = Annotated[
    str, typer.Option(help="API key of the second server. It does not get --api-key.", show_default=False)
]
Rounds = Annotated[int, typer.Option(min=1, max=1000, help="Number of rounds with --compare.")]
Plot = Annotated[Path | None, typer.Option(help="Draw latency against load.", metavar="FILE.png")]
Connect = Annotated[bool, typer.Option("--new-connections", help="Open a new connection for each request.")]
Ttft = Annotated[float, typer.Option(min=0, help="Goodput target for TTFT, in seconds.")]
Tpot = Annotated[float, typer.Option(min=0, help="Goodput target for TPOT, in seconds.")]


def bench(
    url: Annotated[str, typer.Argument(help="Server URL.")] = "http://127.0.0.1:8000",
    *,
    rate: Rate = None,
    concurrency: Concurrency = None,
    burst: Burst = 1,
    duration: Duration = 30.0,
    warmup: Warmup = 2.0,
    grace: Grace = 30.0,
    requests: Requests = 100_000,
    connections: Connections = 2048,
    new_connections: Connect = False,
    api: Annotated[Api, typer.Option(help="API to call.")] = "chat",
    stream: Annotated[bool, typer.Option(help="Stream responses. Needed for TTFT, ITL, TPOT and goodput.")] = True,
    prompt_tokens: PromptTokens = "64",
    same_prompt: SamePrompt = False,
    prompts: Prompts = None,
    max_tokens: MaxTokens = "64",
    trace: Trace = None,
    ignore_eos: IgnoreEos = None,
    model: Annotated[str | None, typer.Option(help="Model name. Default: the server's first model.")] = None,
    api_key: ApiKey = "",
    slo_ttft: Ttft = 1.0,
    slo_tpot: Tpot = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the load. Equal seeds give equal loads.")] = 1,
    pid: Pid = None,
    compare: Compare = None,
    compare_model: CompareModel = None,
    compare_api_key: CompareKey = "",
    rounds: Rounds = 3,
    as_json: Json = False,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Load a running server and measure latency, throughput, goodput and CPU. docs/bench.md explains the figures."""
    # This must come first, while `locals()` holds the options only.
    options = {name: value for name, value in locals().items() if name not in ("as_json", "out", "plot")}
    raise typer.Exit(_run(options, as_json=as_json, out=out, plot=plot))


def _run(options: dict[str, Any], *, as_json: bool, out: Path | None, plot: Path | None) -> int:
    from tokka.bench.errors import BenchFailedError
    from tokka.bench.report import about

    try:
        _check_files(out, plot)
        session = _session(options)
        head = about(session, sys.argv[1:])
        lines = []
        for line in session.runs(_tell):
            lines.append(line)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**head, **line}) + "\n")
    except BenchFailedError as failure:
        _tell(str(failure))
        return failure.code
    return _show(session, head, lines, as_json=as_json, plot=plot)


def _session(options: dict[str, Any]) -> Session:
    from tokka.bench.errors import BenchFailedError
    from tokka.bench.plan import Plan
    from tokka.bench.prompts import read_prompts
    from tokka.bench.session import Session
    from tokka.bench.sizes import span_of
    from tokka.bench.target import find

    if options["warmup"] >= options["duration"]:
        raise BenchFailedError(f"--warmup {options['warmup']:g} leaves nothing of --duration {options['duration']:g}")
    trace, rates = _trace(options), options["rate"] or []
    if trace is not None and trace.rate is not None and not rates:
        rates = [f"{trace.rate:.6g}"]
    loads = loads_of(rates, options["concurrency"] or [])
    _check_lasts(trace, loads, options["duration"])
    if (most := max((load.concurrency or 0 for load in loads), default=0)) > options["connections"]:
        raise BenchFailedError(
            f"--concurrency {most} needs as many --connections; the limit is {options['connections']}"
        )
    prompts = read_prompts(options["prompts"], options["api"]) if options["prompts"] else ()
    ignore_eos = options["ignore_eos"]
    targets = [find(options["url"], model=options["model"], key=options["api_key"], pid=options["pid"])]
    if options["compare"]:
        model = options["compare_model"] or options["model"]
        targets.append(find(options["compare"], model=model, key=options["compare_api_key"], pid=None))
    plan = Plan(
        url="",
        model="",
        tenants=(),
        duration_s=options["duration"],
        warmup_s=options["warmup"],
        grace_s=options["grace"],
        api=options["api"],
        stream=options["stream"],
        prompts=prompts,
        prompt_tokens=span_of("--prompt-tokens", options["prompt_tokens"]),
        same_prompt=options["same_prompt"],
        max_tokens=span_of("--max-tokens", options["max_tokens"]),
        trace=trace,
        ignore_eos=not prompts if ignore_eos is None else ignore_eos,
        seed=options["seed"],
        burst=options["burst"],
        new_connections=options["new_connections"],
        max_connections=options["connections"],
        max_requests=options["requests"],
        slo_ttft_s=options["slo_ttft"],
        slo_tpot_s=options["slo_tpot"],
    )
    return Session(targets, loads, plan, options["rounds"] if options["compare"] else 1)


def _trace(options: dict[str, Any]) -> TraceSource | None:
    from tokka.bench.errors import BenchFailedError
    from tokka.bench.trace import trace_of

    if (name := options["trace"]) is None:
        return None
    for option in ("concurrency", "prompts"):
        if options[option]:
            raise BenchFailedError(f"--trace sets arrivals and lengths; leave --{option} out")
    trace = trace_of(name)
    if trace.rate is None and not options["rate"]:
        raise BenchFailedError(f"--trace {name} needs --rate, the mean requests per second")
    return trace


def _check_lasts(trace: TraceSource | None, loads: Sequence[Load], duration_s: float) -> None:
    from tokka.bench.errors import BenchFailedError

    for load in loads:
        if trace and load.rate and (lasts_s := trace.lasts_s(load.rate)) < duration_s:
            raise BenchFailedError(f"--trace lasts {lasts_s:.0f} s at {load.label}; set a shorter --duration")


def loads_of(rates: Sequence[str], concurrencies: Sequence[str]) -> list[Load]:
    """Return the loads of `--rate` or `--concurrency`, repeated or with commas. Default: one user.

    Raises BenchFailedError.
    """
    from tokka.bench.errors import BenchFailedError
    from tokka.bench.session import Load

    if rates and concurrencies:
        raise BenchFailedError("--rate is an open loop and --concurrency a closed one; give one of them")
    loads: list[Load] = []
    for part in ",".join(rates).split(",") if rates else []:
        value = _number("--rate", part)
        if not 0 < value <= MAX_RATE:
            raise BenchFailedError(f"--rate {part}: write requests per second, above 0 and at most {MAX_RATE}")
        loads.append(Load(rate=value))
    for part in ",".join(concurrencies).split(",") if concurrencies else []:
        value = _number("--concurrency", part)
        if value != int(value) or not 1 <= value <= MAX_CONCURRENCY:
            raise BenchFailedError(f"--concurrency {part}: write a whole number from 1 to {MAX_CONCURRENCY}")
        loads.append(Load(concurrency=int(value)))
    # Drop duplicates: the same load twice would be one point of the plot but two columns of the table.
    return list(dict.fromkeys(loads)) or [Load(concurrency=1)]


def _number(option: str, text: str) -> float:
    from tokka.bench.errors import BenchFailedError

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BenchFailedError(f"{option} {text}: write a number, or several with commas between them")
    return value


def _check_files(out: Path | None, plot: Path | None) -> None:
    """Raise BenchFailedError if an output file cannot be written. Runs before the load, not after it."""
    from tokka.bench.errors import BenchFailedError

    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise BenchFailedError(f"{option} {path}: cannot write it; name a writable file in an existing folder")
    if plot is None:
        return
    if plot.suffix not in PICTURES:
        raise BenchFailedError(f"--plot {plot}: the file name must end with one of {', '.join(PICTURES)}")
    try:
        import tokka.bench.plot  # noqa: F401
    except ImportError as error:
        raise BenchFailedError(
            f"--plot needs matplotlib ({error.name} is missing): pip install 'tokka[plot]'"
        ) from None


def _show(session: Session, head: Line, lines: Sequence[Line], *, as_json: bool, plot: Path | None) -> int:
    from tokka.bench.report import comparison_table, document, loads_table, troubles

    if as_json:
        print(json.dumps(document(session, head, lines), indent=2))
    else:
        _print_about(head, session)
        if len(session.targets) == 1:
            _print_table(*loads_table(session, lines))
        else:
            for load in session.loads:
                print(f"{load.label}, medians of {session.rounds} rounds, ratios within each")
                _print_table(*comparison_table(session, lines, load.label))
                print()
    if plot is not None:
        from tokka.bench.plot import draw

        draw(session, lines, plot)
    found = troubles(lines)
    for trouble in found:
        _tell(trouble)
    if any(line["figures"]["completed"] for line in lines):
        return 0
    _tell("no request was completed" + ("" if found else ": none was due in the window; set a longer --duration"))
    return 1


def _print_about(head: Line, session: Session) -> None:
    hardware, targets = head["hardware"], head["targets"]
    names = ("server",) if len(head["servers"]) == 1 else ("first", "second")
    for name, server in zip(names, head["servers"], strict=True):
        print(f"{name}: {' '.join(map(str, server.values()))}")
    print(f"client: tokka {head['tokka']}, {hardware['cpu']}, {hardware['cores']} cores, seed {head['seed']}")
    print(f"goodput: TTFT <= {targets['ttft_s']:g} s, TPOT <= {targets['tpot_s']:g} s")
    if any(target.pid is None for target in session.targets):
        print("no server CPU: the server's process was not found; set --pid if it runs on this machine")
    print()


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from tokka.cli.table import print_table

    print_table(columns, rows, numbers_from=columns.index("unit") + 1)


def _tell(message: str) -> None:
    # The message may quote a server. Remove control characters, which the terminal would obey.
    shown = "".join(character if character.isprintable() else " " for character in message)
    print(f"tokka: {shown}", file=sys.stderr, flush=True)
