"""Marks events of a run on the dashboards, and links the dashboards with each other and with the runbook.

An event is a point at which a series of the run changed: a checkpoint, a replaced actor, a resume, or a changed number
of planned actors. Prometheus needs no other source.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.models.dashboard import AnnotationQuery, DashboardLinkType

from monitoring.panels import RUN, SOURCE, WINDOW

RUNBOOK = "https://github.com/treeadv/treeadv/blob/main/docs/runbook.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A kind of event. `expr` has a value while the event is in the window."""

    name: str
    expr: str
    text: str
    colour: str


_TARGET = f"treeadv_actors_target{{{RUN}}}[{WINDOW}]"
EVENTS = (
    Event(
        name="Checkpoints",
        expr=f"sum by (run) (increase(treeadv_checkpoint_seconds_count{{{RUN}}}[{WINDOW}])) > 0",
        text="{{run}}: checkpoint",
        colour="green",
    ),
    Event(
        name="Restarts",
        expr=f"sum by (run, role) (increase(treeadv_actor_restarts_total{{{RUN}}}[{WINDOW}])) > 0",
        text="{{run}}: {{role}} replaced",
        colour="red",
    ),
    Event(
        name="Resumes",
        expr=f"sum by (run) (increase(treeadv_resumes_total{{{RUN}}}[{WINDOW}])) > 0",
        text="{{run}}: resumed from the last checkpoint",
        colour="dark-red",
    ),
    Event(
        name="Scaling",
        # The number rises from 0 at the start of the run. This rise does not count as scaling.
        expr=f"sum by (run, role) (changes({_TARGET}) and min_over_time({_TARGET}) > 0) > 0",
        text="{{run}}: another number of {{role}} actors",
        colour="blue",
    ),
)


class Annotation(AnnotationQuery):
    """An annotation of the data source Prometheus. The SDK lacks some of its fields."""

    def __init__(self, event: Event) -> None:
        super().__init__(name=event.name, datasource=SOURCE, icon_color=event.colour, expr=event.expr)
        self._more: dict[str, object] = {"titleFormat": event.name, "textFormat": event.text, "tagKeys": "run,role"}

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self._more

    def build(self) -> Annotation:
        """Return this object, because the dashboard calls `build` of its annotations."""
        return self


def links() -> list[DashboardLink]:
    """Return the links of every board. One opens the other boards with the same run and time; one opens the runbook."""
    boards = DashboardLink("Boards").type(DashboardLinkType.DASHBOARDS).tags(["treeadv"]).as_dropdown(False)
    runbook = DashboardLink("Runbook").type(DashboardLinkType.LINK).url(RUNBOOK).target_blank(True).icon("doc")
    return [boards.include_vars(True).keep_time(True), runbook.tooltip("A section for each alert")]
