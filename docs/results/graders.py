"""How right the graders are on published sets: ``python docs/results/graders.py DATA`` (about four minutes, one core).

DATA holds ``gsm8k_train.jsonl``, ``gsm8k_test.jsonl``, ``math_test.jsonl``, ``humaneval.jsonl.gz``, ``ifeval.jsonl``
and ``alpaca_en_demo.json``, as their authors publish them, at any depth. Names behind DATA choose among ``gsm8k math
humaneval ifeval``. Everything goes through what ``leyden reward`` calls, row by row.
"""

import gzip
import io
import json
import sys
import tempfile
import tokenize
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import second_ifeval

from leyden.align.rewards.mathematics import MathReward, reference_answer
from leyden.align.rewards.rows import RowSettings, grade_rows
from leyden.evaluate.harness.instructions import follows


def rows_of(data, name):
    (path,) = sorted(data.rglob(name))
    text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines() if line]


def graded(kind, rows):
    """The records of rows, read back from a file as the verb reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(grade_rows(path, RowSettings(kind)))


def tell(what, rewards, wanted):
    right = sum(one.reward == wanted for one in rewards)
    print(f"{what}: {right} of {len(rewards)} ({100 * right / len(rewards):.2f} %)", flush=True)
    return [place for place, one in enumerate(rewards) if one.reward != wanted]


def gsm8k(data):
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        rows = rows_of(data, name)
        golds = [float(reference_answer(row["answer"]).replace(",", "")) for row in rows]
        right = [{"response": row["answer"], "reference": row["answer"]} for row in rows]
        tell(f"{name}: reference solutions graded right", graded("math", right), 1.0)
        said = [
            {"response": f"The answer is ${gold:,g}.", "reference": row["answer"]}
            for row, gold in zip(rows, golds, strict=True)
            if abs(gold) < 1e6
        ]
        tell(f"{name}: the same answers in a sentence graded right", graded("math", said), 1.0)
        for how, change in (
            ("plus one", lambda x: x + 1),
            ("ten times and one", lambda x: 10 * x + 1),
            ("negative less one", lambda x: -x - 1),
        ):
            wrong = [
                {
                    "response": row["answer"].rsplit("####", 1)[0] + f"#### {change(gold):.12g}",
                    "reference": row["answer"],
                }
                for row, gold in zip(rows, golds, strict=True)
            ]
            tell(f"{name}: altered answers ({how}) graded wrong", graded("math", wrong), 0.0)


def math(data):
    rows = rows_of(data, "math_test.jsonl")
    golds = [reference_answer(row["solution"]) for row in rows]
    right = [{"response": row["solution"], "reference": row["solution"]} for row in rows]
    tell("MATH: reference solutions graded right", graded("math", right), 1.0)
    plain = [{"response": f"So the answer is $\\boxed{{{gold}}}$.", "reference": gold} for gold in golds]
    tell("MATH: the same answers in a box, against the answer alone", graded("math", plain), 1.0)
    wrong = [{"response": f"\\boxed{{{gold} + 1}}", "reference": gold} for gold in golds]
    for place in tell("MATH: answers with '+ 1' graded wrong", graded("math", wrong), 0.0)[:30]:
        print("   graded right:", json.dumps(golds[place] + " + 1"))
    mathematics = MathReward()
    same = [mathematics.same_by_symbols(gold, gold) for gold in golds]
    print(f"MATH: answers that math-verify alone finds equal to themselves: {sum(ok for ok, _ in same)} of {len(same)}")
    for gold, (ok, why) in list(zip(golds, same, strict=True)):
        if not ok:
            print("   not:", json.dumps(gold), why[:80])
    mathematics.close()


SWAPS = {
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "//": "*",
    "%": "+",
    "<": ">",
    ">": "<",
    "<=": ">=",
    ">=": "<=",
    "==": "!=",
    "!=": "==",
    "+=": "-=",
    "-=": "+=",
    "True": "False",
    "False": "True",
    "and": "or",
    "or": "and",
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "in": "is",
    "**": "+",
    "not": "bool",
    "len": "id",
    "sum": "len",
    "sorted": "list",
    "return": "yield",
}


def mutants(solution):
    """Programs with one token changed, from the last token on."""
    lines = solution.splitlines(keepends=True)
    found = []
    for token in tokenize.generate_tokens(io.StringIO("if True:\n" + solution).readline):
        if token.start[0] == 1:
            continue
        new = str(int(token.string) + 1) if token.string.isdigit() else SWAPS.get(token.string)
        if new is not None:
            row, begin, end = token.start[0] - 2, token.start[1], token.end[1]
            changed = [*lines[:row], lines[row][:begin] + new + lines[row][end:], *lines[row + 1 :]]
            found.append((token.string, new, "".join(changed)))
    return found[::-1]


def humaneval(data):
    tasks = rows_of(data, "humaneval.jsonl.gz")

    def row(task, solution):
        return {
            "prompt": task["prompt"],
            "response": task["prompt"] + solution,
            "tests": task["test"],
            "entry_point": task["entry_point"],
        }

    rewards = graded("code", [row(task, task["canonical_solution"]) for task in tasks])
    for place in tell("HumanEval: canonical solutions that pass", rewards, 1.0):
        print("   ", tasks[place]["task_id"], rewards[place].reason[:200])
    made = [mutants(task["canonical_solution"]) for task in tasks]
    left, failed, tried = list(range(len(tasks))), 0, 0
    while left:
        left = [place for place in left if len(made[place]) > tried]
        rewards = graded("code", [row(tasks[place], made[place][tried][2]) for place in left])
        survived = [place for place, one in zip(left, rewards, strict=True) if one.reward != 0.0]
        failed, tried = failed + len(left) - len(survived), tried + 1
        print(
            f"HumanEval: with one token changed (try {tried}) fail {len(left) - len(survived)} of {len(left)}; "
            f"together {failed}"
        )
        for place in survived:
            old, new, _ = made[place][tried - 1]
            print("    passes:", tasks[place]["task_id"], f"{old!r} became {new!r}")
        left = survived
    print(
        "HumanEval: tasks without any token that the list of changes names:",
        [task["task_id"] for task, some in zip(tasks, made, strict=True) if not some],
    )


def ifeval(data):
    tasks = rows_of(data, "ifeval.jsonl")
    texts = [row["output"] for row in rows_of(data, "alpaca_en_demo.json") if row["output"].strip()]
    asked = [
        (name, {key: value for key, value in (given or {}).items() if value is not None}, task["prompt"])
        for task in tasks
        for name, given in zip(task["instruction_id_list"], task["kwargs"], strict=True)
    ]
    print(f"IFEval: {len(tasks)} prompts, {len(asked)} instructions of {len({name for name, _, _ in asked})} kinds")
    same, total, held, apart = Counter(), Counter(), Counter(), Counter()
    shown = []
    for number, (name, given, prompt) in enumerate(asked):
        for text in answers(name, given, prompt, texts, number):
            if not text.strip():
                continue
            ours = follows(text, {"id": name, **given})
            theirs = bool(second_ifeval.CHECKS[name](text, **given))
            total[name] += 1
            held[name] += ours
            same[name] += ours == theirs
            if ours != theirs:
                apart[name] += 1
                shown.append((name, given, ours, theirs, text[:3000]))
    for name in sorted(total):
        print(f"   {name}: the same for {same[name]} of {total[name]} (followed: {held[name]})")
    print(f"IFEval: both readings say the same for {sum(same.values())} of {sum(total.values())} answers")
    for name in apart:
        for one in [case for case in shown if case[0] == name][:6]:
            print("   differ:", json.dumps(one, ensure_ascii=False)[:700])


def answers(name, given, prompt, texts, number):
    """Answers of people and models, as they are and in forms that the instruction speaks of."""
    some = [texts[(7 * number + step) % len(texts)] for step in range(6)]
    count = next((value for value in given.values() if isinstance(value, int)), 3)
    yield from [*some, prompt, some[0].upper(), some[1].lower(), f'"{some[2]}"', some[3].replace(",", ";")]
    for near in (count - 1, count, count + 1):
        yield " ".join(["Well said."] * max(near, 0))
        yield "\n".join(["* point of *interest*"] * max(near, 0))
        yield "\n\n".join([f"{given.get('first_word', 'So')}, it goes."] * max(near, 0))
        yield "\n***\n".join(some[:1] * max(near, 0))
        yield " ".join(["[place] **bold** WORD"] * max(near, 0))
        yield "\n".join(f"{given.get('section_spliter', 'Section')} {n}\ntext" for n in range(1, near + 1))
        yield f" {given.get('keyword', given.get('letter', 'e'))} " * max(near, 0)
    yield " ".join(map(str, (*given.get("keywords", ()), *given.get("forbidden_words", ()))))
    yield f"{given.get('prompt_to_repeat', prompt)}\n{some[0]}"
    yield f"{some[4]}\n\n{given.get('postscript_marker', 'P.S.')} and more. {given.get('end_phrase', '')}"
    yield f"<<a title>>\n{some[5]}\n******\n{some[0]}"
    yield json.dumps({"answer": some[1]})
    yield f"```json\n{json.dumps([some[2]])}\n```"
    yield "I say: My answer is maybe. That is all"
    yield from TONGUES.values()


TONGUES = {
    "de": "Das ist ein Satz, der nicht zu lang ist und von den Leuten auf der Straße mit Freude gelesen wird.",
    "hi": "यह एक छोटा सा उदाहरण है जिसे हम हिंदी में लिख रहे हैं और यह पर्याप्त होना चाहिए।",
    "ru": "Это небольшой пример текста на русском языке, который мы написали для проверки.",
    "ko": "이것은 우리가 검사를 위해 한국어로 쓴 작은 예문입니다.",
    "es": "Esta es una frase corta que no se escribe para los niños, y es de las que se leen en un momento.",
}

if __name__ == "__main__":
    data, chosen = Path(sys.argv[1]), sys.argv[2:] or ["gsm8k", "math", "humaneval", "ifeval"]
    for name in chosen:
        {"gsm8k": gsm8k, "math": math, "humaneval": humaneval, "ifeval": ifeval}[name](data)
