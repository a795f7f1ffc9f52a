"""Decides which identity is worked on next, and how fast each provider may be asked."""

from keyferry.scheduler.agenda import Agenda
from keyferry.scheduler.lane import Lane, LaneLimits
from keyferry.scheduler.queue import Queue

__all__ = ["Agenda", "Lane", "LaneLimits", "Queue"]
