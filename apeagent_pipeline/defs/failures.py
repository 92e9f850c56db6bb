"""What a failed step failed of."""

import dagster as dg


def cause_of(event: dg.DagsterEvent) -> str:
    """The innermost message of a step's failure: what the domain code said."""
    error = event.step_failure_data.error
    while error and error.cause:
        error = error.cause
    if error is None:
        return "failed"
    # Dagster puts the class before the message; who reads this wants the message.
    _, _, message = error.message.strip().partition(": ")
    return message or error.message.strip()
