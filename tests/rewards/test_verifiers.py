"""Tests each verifier except `math` by its name, through the pool."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import reasoning_gym

from treeadv.config import TaskConfig
from treeadv.errors import BadInput
from treeadv.forest import Verdict
from treeadv.rewards.judgement import Answer, Task
from treeadv.rewards.verifiers.registry import BUILT_IN, find_verifier
from treeadv.rewards.verifiers.remote import AUTHORIZATION, Remote

VERIFIED, WRONG, UNPARSED, REFUSED = Verdict.VERIFIED, Verdict.WRONG, Verdict.UNPARSED, Verdict.REFUSED


@pytest.mark.parametrize(
    ("verifier", "response", "gold", "verdict"),
    [
        ("exact", "blue  sky", "blue sky", VERIFIED),
        ("exact", "Let me see.\nblue", "blue", VERIFIED),
        ("exact", r"so \boxed{blue}", "blue", VERIFIED),
        ("exact", "<answer>if a < b:\n  c.</answer>", "if a < b: c.", VERIFIED),
        ("exact", "blues", "blue", WRONG),
        ("exact", "1.0", "1", WRONG),
        ("exact", "", "1", UNPARSED),
        ("numeric", "The answer is 3.0000001", "3", VERIFIED),
        ("numeric", "The answer is 3.001", "3", WRONG),
        ("numeric:0.01", "The answer is 3.001", "3", VERIFIED),
        ("numeric:0.01", "The answer is 3.04", "3", WRONG),
        ("numeric", r"\boxed{\frac{1}{3}}", "0.33333333", VERIFIED),
        ("numeric:1e-3", "0.0005", "0", VERIFIED),
        ("numeric", r"\boxed{x}", "3", UNPARSED),
        ("numeric", "no idea", "3", UNPARSED),
        ("numeric", "3", "three", REFUSED),
        ("numeric", "1,000", "1000", VERIFIED),
        ("choice", "The answer is (B).", "B", VERIFIED),
        ("choice", r"\boxed{\text{B}}", "B", VERIFIED),
        ("choice", "Because A is too small.\nB", "(B)", VERIFIED),
        ("choice", "Answer: B: the blue one", "B", VERIFIED),
        ("choice", "The answer is C", "B", WRONG),
        ("choice", "The answer is A or B", "B", WRONG),
        ("choice", "I choose B", "B", VERIFIED),
        ("choice", "the blue one", "B", UNPARSED),
        ("choice", "The answer is (B) 12 cm long.", "B", VERIFIED),
        ("choice", "Answer: b", "B", VERIFIED),
        ("choice", "So I take option B, not A", "B", VERIFIED),
        ("choice", "The answer is option c.", "C", VERIFIED),
        ("choice", r"\boxed{\textbf{(D)}\ 7}", "D", VERIFIED),
        ("choice", "It can't be A or C, so B", "B", VERIFIED),
        ("choice", "The answer is A and C", "A", WRONG),
        ("choice", "<think>B</think> I choose D", "B", WRONG),
        ("choice", "B is wrong.", "B", UNPARSED),
        ("choice", "(B) is not right", "B", UNPARSED),
        ("choice", "Not B.", "B", UNPARSED),
        ("choice", "It is 20 B", "B", UNPARSED),
        ("numeric", r"\boxed{1}", "1e400", WRONG),
        ("numeric", r"\boxed{4 + 3 = 7}", "7", VERIFIED),
        ("numeric", r"\boxed{x + y = 7}", "7", UNPARSED),
        ("exact", "x", "", WRONG),
        ("exact", "The answer is Apollo 11 mission.", "Apollo 11 mission", VERIFIED),
        ("exact", "The answer is Dr. Smith.", "Dr. Smith", VERIFIED),
        ("exact", "Answer: version 2.5 of St. Mary", "version 2.5 of St. Mary", VERIFIED),
        ("exact", "The answer is Apollo 12 mission.", "Apollo 11 mission", WRONG),
        ("exact", "The answer is blue sky", "blue", WRONG),
        ("exact", r"\boxed{Room 101}", "Room 101", VERIFIED),
        ("numeric", r"\boxed{6.63 \times 10^{-34}}", "6.63e-34", VERIFIED),
        ("numeric", r"\boxed{6.64 \times 10^{-34}}", "6.63e-34", WRONG),
        ("numeric", r"\boxed{\frac12}", "0.5", VERIFIED),
        ("numeric", r"\boxed{3.14 \text{ m}}", "3.14", VERIFIED),
        ("numeric", r"\boxed{x = 3.14}", "3.14", VERIFIED),
        ("numeric", r"\boxed{\approx 3.14}", "3.14", VERIFIED),
        ("numeric", r"\boxed{\$2.50}", "2.5", VERIFIED),
        ("numeric", r"\boxed{50\%}", "0.5", VERIFIED),
        ("numeric", r"\boxed{50\%}", "50", VERIFIED),
        ("numeric", r"\boxed{2\frac{1}{2}}", "2.5", VERIFIED),
        ("numeric", r"\boxed{\sqrt{2}}", "1.41421356", VERIFIED),
        ("numeric", r"\boxed{3\text{ km}}", r"3\text{ m}", WRONG),
        ("numeric", r"\boxed{-\sqrt{2}}", "-1.41421356", VERIFIED),
        ("numeric", r"\boxed{5 or 6}", "5", UNPARSED),
        ("numeric", r"<think>\boxed{3}</think> no idea", "3", UNPARSED),
        ("numeric", "6 + 7 =", "13", VERIFIED),
        ("literal", "6 + 7 =", "13", UNPARSED),
        ("literal", "6 + 7", "13", UNPARSED),
        ("literal", "26/2", "13", UNPARSED),
        ("literal", r"\boxed{\frac{26}{2}}", "13", UNPARSED),
        ("literal", r"The answer is $\sqrt{169}$.", "13", UNPARSED),
        ("literal", "12 < 13", "13", UNPARSED),
        ("literal", "6 + 7 = 6 + 7", "13", UNPARSED),
        ("literal", "6 + 7 = 14", "14", UNPARSED),
        ("literal", "no idea", "13", UNPARSED),
        ("math", "5\n\n8 + 6 = 14", "14", VERIFIED),
        ("literal", "12\n13", "13", VERIFIED),
        ("literal", "8 + 6 = 14\n\n14 - 6 = 8", "14", WRONG),
        ("literal", "1 2\n3 4", "4", UNPARSED),
        ("math", "10 ^\n2", "2", WRONG),
        ("literal", "13", "13", VERIFIED),
        ("literal", "6 + 7 = 13", "13", VERIFIED),
        ("literal", r"It is \boxed{6 + 7 = 13}.", "13", VERIFIED),
        ("literal", "The answer is **13**.", "13.0", VERIFIED),
        ("literal", "-1,300.50", "-1300.5", VERIFIED),
        ("literal", r"She pays \$18.", "18", VERIFIED),
        ("literal", "13 apples", "13", VERIFIED),
        ("literal", "13.000001", "13", WRONG),
        ("literal", "12", "13", WRONG),
        ("literal", "13", "thirteen", REFUSED),
    ],
)
def test_verdicts_of_the_verifiers_that_need_no_process(grade, verifier, response, gold, verdict):
    [j] = grade(Answer(response=response, gold=gold, verifier=verifier))
    assert (j.verdict, j.reward, j.seconds) == (verdict, float(verdict is VERIFIED), 0.0)


@pytest.mark.parametrize(
    "name",
    ["math", "exact", "numeric", "numeric:0.5", "literal", "choice", "reasoning-gym", "a.b:c", "https://host/grade"],
)
def test_every_documented_verifier_name_is_known(name):
    find_verifier(name)


@pytest.mark.parametrize(
    "name", ["", "Math", "numeric:", "numeric:x", "numeric:1", "a.b", "a:b:c", "a b:c", "ftp://host"]
)
def test_unknown_verifier_name_is_bad_input(name):
    with pytest.raises(BadInput, match="verifier"):
        find_verifier(name)


@pytest.mark.parametrize("name", [*BUILT_IN, "module:NAME", "https://"])
def test_every_verifier_has_a_line_in_the_documentation(name):
    assert f"| `{name}" in Path("docs/rewards.md").read_text() or f", `{name}" in Path("docs/rewards.md").read_text()


@pytest.mark.parametrize("name", ["math:1", "exact:x", "literal:0", "choice:B"])
def test_option_of_a_verifier_without_options_is_refused(name):
    with pytest.raises(BadInput, match="takes no option"):
        find_verifier(name)


def test_help_texts_name_every_built_in_verifier():
    assert all(name in TaskConfig.model_fields["verifier"].description for name in BUILT_IN)


def test_user_verifier_class_runs_completely_in_the_worker(grade):
    screened, judged = grade(*[Answer(response=r, gold="g", verifier="verifier_functions:Parity") for r in ("", "ab")])
    assert (screened.verdict, screened.detail) == (UNPARSED, "empty")
    assert (judged.verdict, judged.reward) == (VERIFIED, 1.0)


@pytest.mark.parametrize(
    "family", ["chain_sum", "number_sorting", "spell_backward", "countdown", "leg_counting", "basic_arithmetic"]
)
def test_reasoning_gym_scores_its_own_answers_in_full(grade, family):
    dataset = reasoning_gym.create_dataset(family, size=4, seed=1)
    entries = [dataset[i] for i in range(4)]
    golds = [str(e["answer"] or e["metadata"].get("expression")) for e in entries]
    answers = [
        Answer(
            response=f"I think.\nThe answer is {g}",
            gold=g,
            verifier="reasoning-gym",
            meta=json.dumps({"dataset": family, "entry": e}, default=str),
        )
        for g, e in zip(golds, entries, strict=True)
    ]
    judged = grade(*answers)
    assert [(j.verdict, j.reward) for j in judged] == [(VERIFIED, 1.0)] * 4


def test_reasoning_gym_verifies_full_credit_only(grade):
    entry = {"question": "Say blue", "answer": "blue", "metadata": {}}
    meta = json.dumps({"dataset": "spell_backward", "entry": entry})
    partial, none = grade(*[Answer(response=r, gold="blue", verifier="reasoning-gym", meta=meta) for r in ("bluf", "")])
    assert partial.verdict is WRONG and 0 < partial.reward < 1
    assert (none.verdict, none.reward) == (UNPARSED, 0.0)


@pytest.mark.parametrize("meta", ["", "{}", "[]", '{"dataset": "chain_sum"}', '{"entry": {"answer": "1"}}'])
def test_reasoning_gym_without_its_entry_is_bad_input(grade, meta):
    with pytest.raises(BadInput, match="meta must be JSON"):
        grade(Answer(response="1", gold="1", verifier="reasoning-gym", meta=meta))


def test_unknown_reasoning_gym_family_is_bad_input(grade):
    meta = json.dumps({"dataset": "chain_sums", "entry": {"answer": "1"}})
    with pytest.raises(BadInput, match="no data set 'chain_sums'"):
        grade(Answer(response="1", gold="1", verifier="reasoning-gym", meta=meta))


class _Remote(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["response"] == "slow":
            time.sleep(4)
        replies = {
            "half": b'{"reward": 0.5}', "full": b'{"reward": 1, "detail": "well done"}', "odd": b"<html>",
            "named": b'{"reward": 0, "verdict": "unparsed"}', "other": b'{"reward": 0, "verdict": "maybe"}',
        }  # fmt: skip
        if asked["response"] == "echo secrets":
            secrets = self.headers["Authorization"] + self.path
            replies[asked["response"]] = json.dumps({"reward": 0, "detail": secrets}).encode()
        self.send_response({"error": 500, "redirect": 302}.get(asked["response"], 200))
        if asked["response"] == "redirect":
            self.send_header("Location", f"file://{self.path}")
        self.end_headers()
        self.wfile.write(
            replies.get(asked["response"], json.dumps({"reward": float(asked["gold"] == asked["meta"])}).encode())
        )

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Remote)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/grade"
    server.shutdown()
    server.server_close()


def test_remote_verifier_is_called_over_http(grade, remote):
    half, full, named, echoed = grade(
        *[Answer(response=r, gold="g", verifier=remote, meta="g") for r in ("half", "full", "named", "echo")]
    )
    assert (half.verdict, half.reward) == (WRONG, 0.5)
    assert (full.verdict, full.reward, full.detail) == (VERIFIED, 1.0, "well done")
    assert (named.verdict, named.reward) == (UNPARSED, 0.0)
    assert echoed.verdict is VERIFIED


def test_failing_remote_verifier_is_never_a_wrong_verdict(grade, remote):
    nowhere = "http://127.0.0.1:9/grade"
    odd, other, error, slow, down = grade(
        *[Answer(response=r, gold="g", verifier=remote, meta="g") for r in ("odd", "other", "error", "slow")],
        Answer(response="x", gold="g", verifier=nowhere),
    )
    assert [j.verdict for j in (odd, other, error, down)] == [Verdict.CRASH] * 4
    assert "JSONDecodeError" in odd.detail and "the verdict 'maybe' is unknown" in other.detail
    assert "500" in error.detail and "refused" in down.detail
    assert slow.verdict is Verdict.TIMEOUT


@pytest.mark.parametrize("answer", ["echo secrets", "redirect"])
def test_secrets_never_reach_the_detail(answer, remote, monkeypatch):
    monkeypatch.setenv("TREEADV_VERIFIER_TOKEN", "s3cret\n")  # a file of a secret often ends with a line break
    monkeypatch.setenv(AUTHORIZATION, "Bearer 0ther\n")
    verifier = Remote(f"{remote}?token=${{TREEADV_VERIFIER_TOKEN}}")
    verifier.load()
    grade = verifier.judge(Task(verifier=verifier.name, gold="g", text=answer, meta="", seconds=1.0))
    assert grade.detail and "s3cret" not in grade.detail and "0ther" not in grade.detail


@pytest.mark.parametrize("secret", ["a\nb", "a\x1b", "é"])
def test_secret_that_no_url_may_have_is_named_and_not_shown(secret, monkeypatch):
    monkeypatch.setenv("TREEADV_VERIFIER_TOKEN", secret)
    with pytest.raises(LookupError, match="TREEADV_VERIFIER_TOKEN holds a character") as e:
        Remote("http://127.0.0.1:9/${TREEADV_VERIFIER_TOKEN}").load()
    assert secret not in str(e.value)


def test_async_function_gets_the_columns_it_names(grade):
    row = json.dumps({"problem": "the detail", "difficulty": 3, "other": 1})
    [j] = grade(Answer(response="x", gold="x", verifier="verifier_functions:awaited", meta=row))
    assert (j.verdict, j.reward, j.detail, j.parts) == (VERIFIED, 3.0, "the detail", {"brevity": 0.5})


def test_function_with_double_star_gets_all_columns(grade):
    [j] = grade(
        Answer(
            response="x",
            gold="x",
            verifier="verifier_functions:everything",
            meta=json.dumps({"problem": "p", "a": 1, "b": 2}),
        )
    )
    assert j.reward == len({"problem", "a", "b", "response", "gold", "meta"})


def test_weighted_sum_adds_rewards_and_names_its_parts(grade):
    name = 'sum:[["exact", 1.0], ["verifier_functions:everything", 0.5]]'
    [j] = grade(
        Answer(
            response="<answer>a</answer>", gold="a", verifier=name, meta=json.dumps(["", json.dumps({"problem": "p"})])
        )
    )
    assert (j.verdict, j.reward) == (VERIFIED, 1.0 + 0.5 * 4)
    assert j.parts == {"exact": 1.0, "verifier_functions:everything": 4.0}


def test_weighted_sum_is_unjudged_where_one_term_fails(grade):
    [j] = grade(Answer(response="a", gold="a", verifier='sum:[["exact", 1.0], ["verifier_functions:raising", 0.5]]'))
    assert (j.verdict, j.reward) == (Verdict.CRASH, 0.0)
    assert "verifier_functions.py" in j.detail
