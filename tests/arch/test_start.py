"""The program starts at once without an engine: heavy modules are imported only when they are needed."""

from __future__ import annotations

import subprocess
import sys


def test_command_line_imports_no_engine_and_no_web_framework() -> None:
    heavy = ("vllm", "torch", "transformers", "fastapi", "sqlalchemy", "alembic", "psycopg")
    script = f"import sys; import tokka.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_server_over_the_fake_engine_imports_no_engine() -> None:
    script = (
        "import sys; from tokka.app import create_server; from tokka.engine.factory import engine_factory\n"
        "from tokka.settings import Settings\n"
        "s = Settings(engine='fake'); create_server(s, engine_factory(s))\n"
        "print([m for m in ('vllm', 'torch', 'transformers', 'sqlalchemy', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_model_is_reported_before_the_engine_import() -> None:
    script = (
        "import asyncio, sys, tokka.app; from tokka.engine.factory import engine_factory\n"
        "from tokka.errors import StartupError\n"
        "from tokka.settings import Settings\n"
        "try: asyncio.run(engine_factory(Settings(model='/none'))().start(lambda *_: None))\n"
        "except StartupError as error: print(error, [m for m in ('vllm', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "/none does not exist" in done.stdout
    assert done.stdout.endswith(" []\n")
