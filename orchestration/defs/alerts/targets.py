"""Where messages go: Slack by its incoming webhook, anything else through Apprise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

import apprise
import httpx

from orchestration.defs.alerts.news import Message
from orchestration.settings import OrchestrationSettings

SECONDS: Final = 10.0
"""How long a target may take: a tick of Dagster's may take 60 s, and waits for all at once."""

# It logs each URL that it posts to, and the URL is the secret.
logging.getLogger("httpx").setLevel(logging.WARNING)
# What it would say comes back from `notify`.
logging.getLogger("apprise").propagate = False


class DeliveryError(Exception):
    """A target took no message; the reason holds no secret."""


class Target(Protocol):
    """Someone to tell."""

    @property
    def name(self) -> str:
        """What the user knows it by, without its secret."""

    def send(self, messages: Sequence[Message]) -> None:
        """Deliver all of them, as one.

        Raises:
            DeliveryError: none is delivered.

        """


@dataclass(frozen=True)
class Slack:
    """A channel of Slack, or of what takes Slack's webhooks, such as Mattermost."""

    webhook: str = field(repr=False)
    name: str = "SLACK_WEBHOOK_URL"

    def send(self, messages: Sequence[Message]) -> None:
        """Post text: a phone shows it in the notification, which it does not do with blocks."""
        text = "\n\n".join(
            f"{_mark(message)} *{_escaped(_headline(message))}*\n{_escaped(message.text)}"
            for message in messages
        )
        try:
            answer = httpx.post(self.webhook, json={"text": text}, timeout=SECONDS)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise DeliveryError(self._without_secret(reason)) from None
        if not answer.is_success:
            said = " ".join(answer.text.split())[:200]
            raise DeliveryError(
                self._without_secret(f"It answered {answer.status_code}: {said or 'nothing'}")
            )

    def _without_secret(self, reason: str) -> str:
        return reason.replace(self.webhook, "***").replace(urlsplit(self.webhook).path, "/***")


@dataclass(frozen=True)
class ThroughApprise:
    """Any of the services that Apprise knows."""

    name: str
    service: apprise.NotifyBase = field(repr=False)

    def send(self, messages: Sequence[Message]) -> None:
        """Send title and body; who has but one of the two gets both in it."""
        title = f"medallion: {_headline(messages[0])}"
        if len(messages) > 1:
            title += f", and {len(messages) - 1} more"
        body = "\n\n".join(
            f"{_mark(message)} {_headline(message)}\n{message.text}" for message in messages
        )
        over = all(message.is_over for message in messages)
        kind = apprise.NotifyType.SUCCESS if over else apprise.NotifyType.WARNING
        to = apprise.Apprise()
        to.add(self.service)
        done = to.notify(body, title, notify_type=kind, timeout=SECONDS)
        if not done:
            # Warnings alone: with more detail it says whole URLs.
            said = " ".join(entry.message for entry in done.logs())
            raise DeliveryError(said or f"It ended with {done.status}")


def configured(settings: OrchestrationSettings) -> list[Target]:
    """Return whom the settings name."""
    found: list[Target] = []
    if settings.slack_webhook_url is not None:
        found.append(Slack(settings.slack_webhook_url.get_secret_value()))
    for number, url in enumerate(settings.alert_targets(), start=1):
        service = apprise.Apprise.instantiate(url)
        assert service is not None  # noqa: S101  (the settings tried it)
        found.append(ThroughApprise(f"ALERT_URLS {number} ({service.service_name})", service))
    return found


def _headline(message: Message) -> str:
    return f"Over: {message.title}" if message.is_over else message.title


def _mark(message: Message) -> str:
    return "\N{LARGE GREEN CIRCLE}" if message.is_over else "\N{LARGE RED CIRCLE}"


def _escaped(text: str) -> str:
    """Escape as Slack asks to: else it takes `<…>` for a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
