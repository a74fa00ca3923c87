"""Which program an answer gives."""

import pytest

from leyden.evaluate.harness.code_answers import program_of

PROMPT = 'import math\n\ndef f(x):\n    """Doubles."""\n'


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("    return 2 * x\n\nprint(f(1))", PROMPT + "    return 2 * x\n"),
        (
            "Sure:\n```python\ndef f(x):\n    return x\n```\nUse it so:\n```\nf(1)\n```",
            PROMPT + "\ndef f(x):\n    return x\n",
        ),
        ("```py\ndef f(x):\n    return x", PROMPT + "\ndef f(x):\n    return x"),
        ("def f(x):\n    return x", PROMPT + "\ndef f(x):\n    return x"),
    ],
)
def test_answers_to_a_prompt_in_python(answer, program):
    assert program_of(answer, PROMPT, "f") == program


def test_answers_to_other_prompts():
    assert program_of("```\nx = 1\n```\nor\n```\nx = 2\n```", "Write x.") == "x = 2\n"
    assert program_of("print(1)", "Write a program") == "print(1)"
    assert program_of("  ```python\nx = 1\n  ```", "") == "x = 1\n"
