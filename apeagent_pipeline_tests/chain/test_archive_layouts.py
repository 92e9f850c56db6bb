"""One swap history in many layouts, rewritten by the tools themselves; pools of other kinds; and the way back."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC, DYNAMIC_FEE, PoolSpec, Token
from apeagent_pipeline.amm.swap_math import swap_step
from apeagent_pipeline.amm.ticks import sqrt_price_at_tick, tick_at_sqrt_price
from apeagent_pipeline.artifacts.provenance import digest
from apeagent_pipeline.chain.archive import ArchiveError, SwapArchive
from apeagent_pipeline.chain.archive.writing import write_swaps
from apeagent_pipeline.chain.events import RAW_SWAPS_SCHEMA, SWAP_TOPIC

COUNT = 300
LARGE = ("amount0", "amount1", "sqrt_price_x96", "liquidity")
MANAGER = BASE_ETH_USDC.pool_manager.lower()


@pytest.fixture(scope="module")
def swaps(two_days: pl.DataFrame) -> pl.DataFrame:
    return two_days.head(COUNT)


def word(value: Any) -> str:
    return f"{int(value) % (1 << 256):064x}"


def data(row: dict[str, Any]) -> str:
    return "0x" + "".join(word(row[name]) for name in (*LARGE[:2], "sqrt_price_x96", "liquidity", "tick", "fee"))


def topics(row: dict[str, Any]) -> list[str]:
    return [SWAP_TOPIC, row["pool_id"], "0x" + "0" * 24 + row["sender"][2:]]


def log(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "address": MANAGER,
        "topics": topics(row),
        "data": data(row),
        "blockNumber": hex(row["block_number"]),
        "blockHash": row["block_hash"],
        "transactionHash": row["transaction_hash"],
        "transactionIndex": hex(row["transaction_index"]),
        "logIndex": hex(row["log_index"]),
        "removed": False,
    }


def text(swaps: pl.DataFrame, form: str = "%Y-%m-%d %H:%M:%S") -> pd.DataFrame:
    written = swaps.with_columns(pl.col("block_timestamp").dt.strftime(form)).cast(pl.String())
    return pd.DataFrame(written.to_dicts())


def etherscan(swaps: pl.DataFrame, path: Path) -> None:
    rows = [
        {**log(row), "timeStamp": hex(int(row["block_timestamp"].timestamp())), "gasPrice": "0x1"}
        for row in swaps.to_dicts()
    ]
    path.write_text(json.dumps({"status": "1", "message": "OK", "result": rows}))


def rpc_batch(swaps: pl.DataFrame, path: Path) -> None:
    rows = [log(row) for row in swaps.to_dicts()]
    answers = [{"jsonrpc": "2.0", "id": i, "result": rows[i * 100 : (i + 1) * 100]} for i in range(3)]
    path.write_text(json.dumps([*answers, {"jsonrpc": "2.0", "id": 3, "result": []}]))


def log_lines(swaps: pl.DataFrame, path: Path) -> None:
    path.write_text("\n".join(json.dumps(log(row)) for row in swaps.to_dicts()))


def viem(swaps: pl.DataFrame, path: Path) -> None:
    names = {"pool_id": "id", "sqrt_price_x96": "sqrtPriceX96"}
    rows = [
        {
            "eventName": "Swap",
            "args": {names.get(n, n): row[n] for n in ("pool_id", "sender", *LARGE, "tick", "fee")},
            "blockNumber": str(row["block_number"]),
            "transactionHash": row["transaction_hash"],
            "logIndex": row["log_index"],
        }
        for row in swaps.to_dicts()
    ]
    path.write_text(json.dumps(rows))


def web3_frame(swaps: pl.DataFrame, path: Path) -> None:
    rows = []
    for row in swaps.to_dicts():
        fields = log(row)
        fields["topics"] = "[" + ", ".join(f"HexBytes('{topic}')" for topic in fields["topics"]) + "]"
        for name in ("data", "transactionHash", "blockHash"):
            fields[name] = f"HexBytes('{fields[name]}')"
        rows.append(fields)
    pd.DataFrame(rows).to_csv(path, index=False)


def dune_raw(swaps: pl.DataFrame, path: Path) -> None:
    rows = [
        {
            "block_time": f"{row['block_timestamp']:%Y-%m-%d %H:%M:%S}.000 UTC",
            "block_number": row["block_number"],
            "contract_address": MANAGER,
            **{f"topic{i}": topic for i, topic in enumerate(topics(row))},
            "data": data(row),
            "tx_hash": row["transaction_hash"],
            "index": row["log_index"],
        }
        for row in swaps.to_dicts()
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def envio_raw(swaps: pl.DataFrame, path: Path) -> None:
    names = {"pool_id": "id", "sqrt_price_x96": "sqrtPriceX96"}
    rows = [
        {
            "chain_id": 8453,
            "event_id": at,
            "event_name": "Swap",
            "contract_name": "PoolManager",
            "block_number": row["block_number"],
            "log_index": row["log_index"],
            "src_address": BASE_ETH_USDC.pool_manager,
            "transaction_fields": json.dumps({"hash": row["transaction_hash"]}),
            "params": json.dumps({names.get(n, n): str(row[n]) for n in ("pool_id", "sender", *LARGE, "tick", "fee")}),
        }
        for at, row in enumerate(swaps.to_dicts())
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def int256(swaps: pl.DataFrame, path: Path) -> None:
    """As ClickHouse writes its wide integers: little-endian bytes of fixed length."""
    columns: dict[str, Any] = {name: swaps[name].to_arrow() for name in swaps.columns if name not in LARGE}
    for name in LARGE:
        values = [int(value).to_bytes(32, "little", signed=True) for value in swaps[name]]
        columns[name] = pa.array(values, pa.binary(32))
    pq.write_table(pa.table(columns), path)


def decimals(swaps: pl.DataFrame, path: Path) -> None:
    table = swaps.to_arrow()
    for name in LARGE:
        column = table.column(name).cast(pa.decimal256(60, 0)).cast(pa.decimal256(70, 9))
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path)


def compressed(write: Callable[[bytes], bytes]) -> Callable[[pl.DataFrame, Path], None]:
    return lambda swaps, path: path.write_bytes(write(text(swaps).to_csv(index=False).encode())) and None


LAYOUTS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "etherscan.json": etherscan,
    "batch.json": rpc_batch,
    "logs.jsonl": log_lines,
    "viem.json": viem,
    "web3.csv": web3_frame,
    "dune_raw.csv": dune_raw,
    "envio_raw.csv": envio_raw,
    "clickhouse.parquet": int256,
    "bignumeric.parquet": decimals,
    "pipe.csv": lambda swaps, path: text(swaps).to_csv(path, index=False, sep="|"),
    "null.tsv": lambda swaps, path: text(swaps).to_csv(path, index=False, sep="\t", na_rep="\\N"),
    "offset.csv": lambda swaps, path: text(swaps, "%Y-%m-%dT%H:%M:%S.000+0000").to_csv(path, index=False),
    "zone.csv": lambda swaps, path: text(swaps, "%Y-%m-%d %H:%M:%S.000 UTC").to_csv(path, index=False, quoting=1),
    "thousands.csv": lambda swaps, path: (
        text(swaps).assign(liquidity=[f"{int(value):,}" for value in swaps["liquidity"]]).to_csv(path, index=False)
    ),
    "swaps.csv.gz": compressed(gzip.compress),
    "swaps.csv.bz2": compressed(bz2.compress),
    "swaps.csv.xz": compressed(lzma.compress),
    "records.json": lambda swaps, path: text(swaps).to_json(path, orient="records"),
    "inferred.parquet": lambda swaps, path: swaps.with_columns(pl.col(LARGE).cast(pl.Int128())).write_parquet(path),
    "utf16.csv": lambda swaps, path: text(swaps).to_csv(path, index=False, encoding="utf-16"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_swaps(name: str, swaps: pl.DataFrame, tmp_path: Path) -> None:
    LAYOUTS[name](swaps, tmp_path / name)
    found = SwapArchive(tmp_path / name, BASE_ETH_USDC)
    known = [column for column in found.swaps.columns if found.swaps[column].null_count() == 0]
    assert {"block_timestamp", "log_index", "sender", *LARGE} <= set(known)
    assert found.swaps.select(known).equals(swaps.select(known))


REFUSED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "american dates": (lambda t: t.assign(block_timestamp="02/02/2025 00:00:41"), "write the year first"),
    "days": (lambda t: t.assign(block_timestamp=t.block_timestamp.str[:10]), "with seconds"),
    "hours": (lambda t: t.assign(block_timestamp=t.block_timestamp.str[:13] + ":00:00"), "not those of their blocks"),
    "one zero": (lambda t: t.assign(amount1=t.amount1 + "0"), "ratio is far from the price"),
    "token order": (
        lambda t: t.assign(
            sqrt_price_x96=[str((1 << 192) // int(p)) for p in t.sqrt_price_x96],
            tick=[str(-int(p) - 1) for p in t.tick],
        ),
        "price of the other direction",
    ),
    "price": (lambda t: t.assign(sqrt_price_x96="3114.93"), "raw integer units"),
    "constant liquidity": (lambda t: t.assign(liquidity="97131199494746000"), "do not belong together"),
    "rounded liquidity": (
        lambda t: t.assign(liquidity=[f"{float(value):.0f}" for value in t.liquidity]),
        "last digits are lost|not to the last digit",
    ),
    "fee of another pool": (lambda t: t.assign(fee="600"), "fee is not what the swaps paid"),
    "accounting": (
        lambda t: t.assign(amount0=t.amount0.str.replace(r"^-(.*)", r"(\1)", regex=True)),
        r"amount0 is '\(",
    ),
    "signer as sender": (lambda t: t.assign(tx_from=t.sender), "account that signed"),
    "short id": (lambda t: t.assign(pool_id="0x96d4...8c0a"), "64 hex digits"),
    "no pool": (lambda t: t.drop(columns="pool_id"), "add a column pool_id"),
    "blocks": (lambda t: t.assign(block_number=[str(int(n) + 1) for n in t.block_number]), "all -2 seconds away"),
    "transaction in two blocks": (
        lambda t: t.assign(transaction_hash=[t.transaction_hash[0], *t.transaction_hash[:-1]]),
        "in another block|another log_index|transaction_index",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_so_is_refused_with_its_cause(name: str, swaps: pl.DataFrame, tmp_path: Path) -> None:
    change, reason = REFUSED[name]
    change(text(swaps)).to_csv(tmp_path / "swaps.csv", index=False)
    with pytest.raises(ArchiveError, match=reason) as refusal:
        _ = SwapArchive(tmp_path / "swaps.csv", BASE_ETH_USDC).swaps
    assert len(str(refusal.value)) < 4_000


@pytest.mark.parametrize("style", ["duckdb csv", "duckdb parquet", "pandas csv", "pandas parquet"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".csv.gz", ".jsonl"])
def test_an_exported_day_comes_back_the_same_through_other_tools(
    ending: str, style: str, swaps: pl.DataFrame, tmp_path: Path
) -> None:
    exported = tmp_path / f"exported{ending}"
    write_swaps(swaps, exported)
    tool, kind = style.split()
    back = tmp_path / "back" / f"swaps.{kind}"
    back.parent.mkdir()
    if tool == "duckdb":
        reader = "read_parquet" if ending == ".parquet" else "read_json" if ending == ".jsonl" else "read_csv"
        options = ", all_varchar = true" if reader == "read_csv" else ""
        duckdb.sql("SET TimeZone = 'UTC'")
        duckdb.sql(f"COPY (SELECT * FROM {reader}('{exported}'{options})) TO '{back}' (FORMAT {kind})")
    else:
        readers: dict[str, Callable[[], pd.DataFrame]] = {
            ".parquet": lambda: pd.read_parquet(exported),
            ".jsonl": lambda: pd.read_json(exported, lines=True, dtype=False, convert_dates=False),
        }
        frame = readers.get(ending, lambda: pd.read_csv(exported, dtype=str))()
        frame.to_csv(back, index=False) if kind == "csv" else frame.to_parquet(back)
    found = SwapArchive(back, BASE_ETH_USDC).swaps
    assert found.equals(swaps)
    assert digest(found.to_dicts()) == digest(swaps.to_dicts())


def history(pool: PoolSpec, tick: int, liquidity: int, trade: int, count: int = 80) -> pl.DataFrame:
    """Swaps inside one wide range, exact to the wei."""
    price, rows = sqrt_price_at_tick(tick), []
    for at in range(count):
        fee = pool.fee if not pool.has_dynamic_fee else 100 + 37 * (at % 50)
        falls = at % 2 == 0
        paid = trade + 7919 * at if falls else (trade + 7919 * at) * price**2 >> 192
        step = swap_step(price, liquidity, -paid, falls, fee)
        price = step.sqrt_price_x96
        rows.append(
            {
                "chain_id": pool.chain_id,
                "pool_id": pool.pool_id,
                "block_number": 25_314_000 + 3 * at,
                "block_hash": f"0x{at + 1:064x}",
                "block_timestamp": (1_686_789_347 + 2 * (25_314_000 + 3 * at)) * 1_000_000,
                "transaction_hash": f"0x{at + 5_000:064x}",
                "transaction_index": 2,
                "log_index": 9,
                "sender": "0x" + "6f" * 20,
                "amount0": str(step.amount0),
                "amount1": str(step.amount1),
                "sqrt_price_x96": str(price),
                "liquidity": str(liquidity),
                "tick": tick_at_sqrt_price(price),
                "fee": fee,
                "tx_from": None,
                "tx_to": None,
            }
        )
    return pl.DataFrame(rows, schema={**RAW_SWAPS_SCHEMA, "block_timestamp": pl.Int64()}).cast(dict(RAW_SWAPS_SCHEMA))


def pool(first: tuple[str, int], second: tuple[str, int], fee: int, hooks: str = "0x" + "0" * 40) -> PoolSpec:
    tokens = [Token(address="0x" + f"{at}" * 40, symbol=s, decimals=d) for at, (s, d) in enumerate((first, second), 1)]
    changed = {"pool_id": "0x" + "cd" * 32, "token0": tokens[0], "token1": tokens[1], "fee": fee, "hooks": hooks}
    return BASE_ETH_USDC.model_copy(update=changed)


POOLS = {
    "stable, 6 and 6 decimals, 0.01 %": (pool(("USDC", 6), ("USDT", 6), 100), 3, 10**15, 10**9),
    "token order reversed, 0.3 %": (pool(("USDC", 6), ("WETH", 18), 3_000), 195_600, 10**17, 10**9),
    "two tokens of 18 decimals, 1 %": (pool(("A", 18), ("B", 18), 10_000), -46_000, 10**22, 10**18),
    "prices beyond 127 bits": (pool(("USDC", 6), ("MEME", 18), 10_000), 450_000, 10**22, 10**9),
    "8 decimals": (pool(("WBTC", 8), ("WETH", 18), 500), 258_000, 10**18, 10**6),
    "hooks": (pool(("A", 18), ("B", 6), 3_000, "0x" + "a4" * 20), -200_000, 10**18, 10**17),
    "hooks and a dynamic fee": (pool(("A", 18), ("B", 6), DYNAMIC_FEE, "0x" + "a4" * 20), -200_000, 10**18, 10**17),
    "no fee": (pool(("A", 18), ("B", 18), 0), 0, 10**24, 10**18),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_of_other_kinds_pass_and_their_flipped_signs_do_not(name: str, tmp_path: Path) -> None:
    spec, tick, liquidity, trade = POOLS[name]
    rows = history(spec, tick, liquidity, trade)
    rows.write_parquet(tmp_path / "swaps.parquet")
    archive = SwapArchive(tmp_path / "swaps.parquet", spec)
    assert archive.swaps.equals(rows)
    assert all(notes.gaps == 0 and notes.confirmed == notes.tested > 0 for notes in archive.imported.days.values())
    flipped = rows.with_columns(
        pl.Series(name, [str(-int(value)) for value in rows[name]]) for name in ("amount0", "amount1")
    )
    flipped.write_parquet(tmp_path / "flipped.parquet")
    with pytest.raises(ArchiveError):
        _ = SwapArchive(tmp_path / "flipped.parquet", spec).swaps
    assert SwapArchive(tmp_path / "flipped.parquet", spec, flips_signs=True).swaps.equals(rows)


def test_a_folder_names_what_it_does_not_read(swaps: pl.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "date=2025-01-21").mkdir()
    swaps.write_parquet(tmp_path / "date=2025-01-21" / "part-0.parquet")
    (tmp_path / "notes.txt").write_text("made with care\n")
    (tmp_path / "query.sql").write_text("select 1")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "empty.json").write_text('{"jsonrpc": "2.0", "id": 1, "result": []}')
    archive = SwapArchive(tmp_path, BASE_ETH_USDC)
    assert archive.swaps.equals(swaps)
    told = " ".join(archive.imported.notices)
    assert all(name in told for name in ("notes.txt", "query.sql", "_SUCCESS", "empty.json"))
    (tmp_path / "more.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ArchiveError, match=r"more\.zip may hold swaps .*unpack it"):
        _ = SwapArchive(tmp_path, BASE_ETH_USDC).swaps


def test_overlapping_files_that_differ_are_told(swaps: pl.DataFrame, tmp_path: Path) -> None:
    swaps.head(200).write_parquet(tmp_path / "a.parquet")
    pl.concat([swaps[100:150], swaps[151:]]).write_parquet(tmp_path / "b.parquet")
    archive = SwapArchive(tmp_path, BASE_ETH_USDC)
    assert archive.swaps.equals(swaps)
    assert "a.parquet and b.parquet overlap and differ: 1 swaps only in the first" in " ".join(archive.imported.notices)


def test_an_archive_is_read_once_for_all_processes(
    swaps: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive").mkdir()
    path, wrong = tmp_path / "archive" / "swaps.parquet", tmp_path / "archive" / "wrong.parquet"
    swaps.write_parquet(path)
    swaps.with_columns(fee=pl.lit(3_000, pl.Int32())).write_parquet(wrong)
    cache = tmp_path / "cache"
    first = SwapArchive(path, BASE_ETH_USDC, cache=cache)
    days = {day: first.read_day(day) for day in first.span()}
    with pytest.raises(ArchiveError) as refusal:
        SwapArchive(wrong, BASE_ETH_USDC, cache=cache).span()
    monkeypatch.setattr("apeagent_pipeline.chain.archive.swap_archive.Importer.run", None)
    again = SwapArchive(path, BASE_ETH_USDC, cache=cache)
    assert all(again.read_day(day).equals(rows) for day, rows in days.items())
    assert again.imported == first.imported
    with pytest.raises(ArchiveError) as repeated:
        SwapArchive(wrong, BASE_ETH_USDC, cache=cache).span()
    assert str(repeated.value) == str(refusal.value)
