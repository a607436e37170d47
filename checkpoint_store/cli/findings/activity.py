"""Findings about the tables in use: dead rows, vacuum, sessions in the way, and distribution by Citus."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoint_store.cli.findings.finding import Finding, duration, listed, ok, warning
from checkpoint_store.cli.text import counted, moment, size
from checkpoint_store.schema import identifier, qualified
from checkpoint_store.storage.diagnosis import Server, Session, TableStatistics, dead_share

_MANY_ROWS = 10_000
"""Fewer dead rows than these are of no account."""
_DEAD_SHARE = 0.3
"""Autovacuum begins at 0.2: with more it does not keep up."""
_IDLE_SECONDS = 30
_OLD_SECONDS = 1800


def vacuum(schema: str | None, server: Server, tables: Sequence[TableStatistics]) -> Finding:
    """Judge dead rows, and whether vacuum gets at them."""
    if not tables:
        return ok("vacuum", "no tables yet")
    if server.is_standby:
        return ok("vacuum", "the primary's business; a standby has no statistics of it")
    if not server.has_autovacuum:
        found = "autovacuum or track_counts is off: deleted checkpoints never make room"
        return warning(
            "vacuum",
            found,
            "ALTER SYSTEM SET autovacuum = on;",
            "ALTER SYSTEM SET track_counts = on;",
            "SELECT pg_reload_conf();",
        )
    if off := [table.table for table in tables if table.is_autovacuum_off]:
        found = f"autovacuum is off for {listed(off)}: deleted checkpoints never make room"
        return warning(
            "vacuum", found, *(f"ALTER TABLE {qualified(name, schema)} RESET (autovacuum_enabled);" for name in off)
        )
    dead, wasted = sum(table.dead for table in tables), sum(table.dead_bytes for table in tables)
    last = max((table.vacuumed_at for table in tables if table.vacuumed_at), default=None)
    found = f"{dead:,} of {sum(table.live + table.dead for table in tables):,} rows are dead, about {size(wasted)}"
    found += f"; last vacuum {moment(last)} UTC" if last else "; no vacuum yet"
    found += ". Rows of distributed tables are counted by the workers alone" * server.has_citus
    if many := [table for table in tables if _has_many_dead(table)]:
        names = [table.table for table in many]
        places = ", ".join(qualified(name, schema) for name in names)
        advice = (
            f"Autovacuum does not keep up with {listed(names)}, or an old transaction (see sessions) keeps it from it"
        )
        settings = [
            f"ALTER TABLE {qualified(name, schema)} SET (autovacuum_vacuum_scale_factor = 0.02);" for name in names
        ]
        return warning("vacuum", f"{found}. {advice}", f"VACUUM (ANALYZE) {places};", *settings)
    if unknown := [table.table for table in tables if table.live > _MANY_ROWS and table.analyzed_at is None]:
        found = f"{found}. {listed(unknown)} was never analyzed, so the server guesses its plans"
        return warning("vacuum", found, f"ANALYZE {', '.join(qualified(name, schema) for name in unknown)};")
    return ok("vacuum", found)


def _has_many_dead(table: TableStatistics) -> bool:
    pairs = ((table.live, table.dead), (table.toast_live, table.toast_dead))
    return any(dead > _MANY_ROWS and dead_share(live, dead) > _DEAD_SHARE for live, dead in pairs)


def sessions(server: Server, found: Sequence[Session]) -> Finding:
    """Judge sessions that hold locks on our tables without doing anything, wait for locks, or keep vacuum off."""
    waiting = [one for one in found if one.waits]
    blockers = {pid for one in waiting for pid in one.blocked_by or ()}
    in_the_way = [one for one in found if one.pid in blockers or _is_idle_holder(one) or _is_old(one) or _excludes(one)]
    hidden = [one for one in found if one.state is None and one.role != server.role]
    if not (waiting or in_the_way):
        if hidden:
            text = (
                f"{counted(len(hidden), 'session')} of other roles use the tables; this role may not see what they do"
            )
            return warning("sessions", text, f"GRANT pg_read_all_stats TO {identifier(server.role)};")
        return ok("sessions", "none holds locks on the tables idly, waits for one, or has an old transaction")
    parts = [_described(one) for one in in_the_way[:3]]
    if waiting:
        by = listed([f"process {pid}" for pid in sorted(blockers)])
        verb = "waits" if len(waiting) == 1 else "wait"
        parts.append(f"{counted(len(waiting), 'session')} {verb} for a lock" + (f" of {by}" if by else ""))
    if len(in_the_way) > 3:
        parts.append(f"and {len(in_the_way) - 3} more")
    way_out = [f"SELECT pg_terminate_backend({one.pid});" for one in in_the_way[:3]]
    idle = sorted({one.role for one in in_the_way if one.role and (one.state or "").startswith("idle")})
    way_out += [f"ALTER ROLE {identifier(role)} SET idle_in_transaction_session_timeout = '5min';" for role in idle]
    return warning("sessions", ". ".join(parts), *way_out)


def _is_idle_holder(one: Session) -> bool:
    is_idle = (one.state or "").startswith("idle in transaction")
    return is_idle and bool(one.tables) and (one.state_seconds or 0) > _IDLE_SECONDS


def _excludes(one: Session) -> bool:
    return one.excludes and not one.waits


def _is_old(one: Session) -> bool:
    return (one.transaction_seconds or 0) > _OLD_SECONDS


def _described(one: Session) -> str:
    age = "" if one.transaction_seconds is None else f", its transaction is {duration(one.transaction_seconds)} old"
    locks = f", locks {listed(list(one.tables))}" if one.tables else ", keeps vacuum from removing dead rows"
    excludes = " against everybody" if one.excludes else ""
    who = f"process {one.pid} of role {identifier(one.role or '?')}"
    application = f" (application_name {identifier(one.application)})" if one.application else ""
    return f"{who}{application}: {one.state or 'state unknown'}{age}{locks}{excludes}"
