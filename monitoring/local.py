"""Starts the installed Prometheus on runs of this machine, with the rules of the chart.

python -m monitoring.local [runs/name ...] [--port 9090]       # default: the newest run of runs/
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from treeadv.command_line import run_command, tool_parser
from treeadv.errors import BadInput

FOLDER = Path(__file__).resolve().parent


def configuration(runs: list[Path]) -> str:
    """Return monitoring/prometheus.yml with local paths and without Alertmanager. The page /alerts of Prometheus shows
    the alerts."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["rule_files"] = [str((FOLDER / "rules").resolve() / "*.yml")]
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(run.resolve() / "targets.json") for run in runs]
    del config["alerting"]
    return yaml.safe_dump(config, sort_keys=False)


def newest(root: Path) -> Path:
    """Return the run of `root` that wrote its targets.json last."""
    files = sorted(root.glob("*/targets.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise BadInput(f"{root.resolve()}: no run in this folder; start one (make train), or name the folder of a run")
    return files[-1].parent


def command(runs: list[Path], port: int) -> list[str]:
    """Write the configuration into the first run's folder and return the command line of Prometheus.

    Raises BadInput if a run has no targets.json or Prometheus is not installed.
    """
    for run in runs:
        if not (run / "targets.json").is_file():
            raise BadInput(
                f"{run}: no targets.json; name the folder of a run that has started (treeadv train prints it)"
            )
    program = shutil.which("prometheus")
    if program is None:
        raise BadInput("prometheus: not installed; run apt-get install prometheus, or use deploy/compose.yaml")
    folder = runs[0] / "prometheus"
    folder.mkdir(exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(configuration(runs))
    return [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.retention.time=30d",
        "--log.level=warn",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = tool_parser("python -m monitoring.local", __doc__)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of runs (default: the newest of runs/)")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args(argv)
    runs = args.runs or [newest(Path("runs"))]
    line = command(runs, args.port)
    print(f"watching {', '.join(map(str, runs))}")
    pages = "graphs /graph, alerts /alerts, targets /targets"
    print(f"Prometheus on http://127.0.0.1:{args.port} ({pages}); Ctrl-C ends it", flush=True)
    os.execv(line[0], line)


if __name__ == "__main__":
    sys.exit(run_command(main))
