"""The look that Dagster's daemon takes, and who is told what is new."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from logging import Logger
from typing import Final

import dagster as dg
import msgspec

from orchestration.defs.alerts.look import look, look_at_runs, read_checks, read_thresholds
from orchestration.defs.alerts.news import Message, State
from orchestration.defs.alerts.problems import Problem, database_away, problems
from orchestration.defs.alerts.targets import DeliveryError, Target, configured
from orchestration.defs.transform.assets import manifest
from orchestration.settings import OrchestrationSettings
from warehouse.settings import Role, WarehouseError, WarehouseSettings

AT_ONCE: Final = 20
"""Messages in one post; the others follow at the next tick."""

thresholds: Final = read_thresholds(manifest)
checks: Final = read_checks(manifest)


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Tell the targets once when a problem begins, and once when it is over."""
    targets = configured(OrchestrationSettings())
    if not targets:
        return dg.SkipReason("Nobody is told: set SLACK_WEBHOOK_URL or ALERT_URLS.")
    names = [target.name for target in targets]
    before = State.read(context.cursor)
    after = _deliver(
        before.after(_current(context), names, datetime.now(UTC)), targets, context.log
    )
    return dg.SensorResult(skip_reason=_summary(after.lasting()), cursor=after.write())


def _summary(titles: list[str]) -> str:
    if not titles:
        return "All is well."
    return f"{len(titles)} problem{'s' * (len(titles) > 1)}: {'; '.join(titles)}."


def _current(context: dg.SensorEvaluationContext) -> list[Problem]:
    assert context.repository_def is not None  # noqa: S101  (the daemon gives it)
    runs = list(look_at_runs(context.instance, context.repository_def.job_names))
    try:
        connection = WarehouseSettings().connection(Role.TRANSFORM)
        return list(problems(asyncio.run(look(connection, checks, thresholds, runs)), thresholds))
    except WarehouseError as error:
        return [database_away(str(error))]


def _deliver(state: State, targets: Sequence[Target], log: Logger) -> State:
    """Give each target what waits for it, all at once: one that hangs holds up no other."""
    due = [target for target in targets if state.waiting[target.name]]
    if not due:
        return state
    with ThreadPoolExecutor(len(due)) as threads:
        reasons = list(
            threads.map(lambda target: _send(target, state.waiting[target.name][:AT_ONCE]), due)
        )
    waiting, failing = dict(state.waiting), dict(state.failing)
    for target, reason in zip(due, reasons, strict=True):
        if reason is None:
            waiting[target.name] = waiting[target.name][AT_ONCE:]
            if failing.pop(target.name, None):
                log.info(f"{target.name} takes messages again.")
        else:
            # Once, not at each tick.
            if target.name not in failing:
                log.warning(f"{target.name} takes no message, and is tried again: {reason}")
            failing[target.name] = reason
    return msgspec.structs.replace(state, waiting=waiting, failing=failing)


def _send(target: Target, messages: Sequence[Message]) -> str | None:
    """Return why a target did not take messages, or None."""
    try:
        target.send(messages)
    except DeliveryError as error:
        return str(error)
    return None
