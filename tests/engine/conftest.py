"""Makes pytest explain failed asserts of the engine contract, as in test files."""

import pytest

pytest.register_assert_rewrite("tests.engine.contract")
