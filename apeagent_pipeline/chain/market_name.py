"""Which market a day of swaps is from, as the fingerprint of its source says."""

import re

_FINGERPRINT = re.compile(r"(?P<kind>[a-z]+)-(?:(?P<made>.*)-)?(?P<chain>\d+)-(?:0x\w{40}-)?(?P<pool>0x[0-9a-f]{64})\b")
_POOL_SHOWN = 10


def market_of(fingerprint: str) -> str:
    """The market in words; equal words mean one market.

    Files and nodes tell the swaps of the same pool alike. The embedded chain is another market for each seed.

    Args:
        fingerprint: See `SwapSource.fingerprint`.
    """
    found = _FINGERPRINT.match(fingerprint)
    if found is None:
        return fingerprint
    pool = f"pool {found['pool'][:_POOL_SHOWN]} of chain {found['chain']}"
    return f"{pool}, simulated ({found['made']})" if found["kind"] == "embedded" else pool
