"""The verifier `http(s)://...`: a service that judges over HTTP."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace

from treeadv.forest import Verdict
from treeadv.rewards.judgement import Outcome, Task, scored
from treeadv.rewards.verifiers.base import Verifier

_NAMED = {v.name.lower(): v for v in Verdict if v is not Verdict.UNGRADED}


class Remote(Verifier):
    """Posts {"response", "gold", "meta"} as JSON; the reply is {"reward": number, "detail"?: text, "verdict"?: name of a verdict}."""

    usage = "an http(s) URL"

    def check_option(self, option: str | None) -> None:
        """Accept any: the name is a URL."""

    def judge(self, task: Task) -> Outcome:
        body = json.dumps({"response": task.text, "gold": task.gold, "meta": task.meta}).encode()
        request = urllib.request.Request(self.name, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:  # bounded by the worker's alarm
            answer = json.load(reply)
        outcome = scored(float(answer["reward"]), str(answer.get("detail", "")))
        return replace(outcome, verdict=_NAMED[answer["verdict"]]) if "verdict" in answer else outcome
