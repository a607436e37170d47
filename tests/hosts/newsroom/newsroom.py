"""A newsroom that keeps, for each article, the checkpoint of the agent that wrote it."""

from sqlalchemy import ForeignKeyConstraint, MetaData, Select, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from checkpoint_store.schema import Tables


class Base(DeclarativeBase):
    metadata = MetaData(
        schema="newsroom",
        naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(referred_table_name)s"},
    )


agents = Tables("agents", metadata=Base.metadata)


class Article(Base):
    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    thread_id: Mapped[str | None]
    checkpoint_ns: Mapped[str | None]
    checkpoint_id: Mapped[str | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["thread_id", "checkpoint_ns", "checkpoint_id"],
            [agents.checkpoints.c.thread_id, agents.checkpoints.c.checkpoint_ns, agents.checkpoints.c.checkpoint_id],
            ondelete="SET NULL",
        ),
    )


def steps_by_article() -> Select[tuple[str, int]]:
    """How many steps the thread of each article has."""
    checkpoints = agents.checkpoints
    return (
        select(Article.title, func.count())
        .join(checkpoints, checkpoints.c.thread_id == Article.thread_id)
        .group_by(Article.title)
        .order_by(Article.title)
    )
