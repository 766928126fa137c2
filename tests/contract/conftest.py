"""Backends that the contract's tests share: each test has a namespace of its own in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from cache_blocks.database import Database
from cache_blocks.tiers.object_store import ObjectStore
from tests.servers.postgres import fresh_database
from tests.servers.s3 import fresh_bucket

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.servers.s3 import S3Account


@pytest.fixture
def sqlite(tmp_path: Path) -> Generator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'cache.db'}")
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres(postgres_server: str) -> Generator[Database]:
    with fresh_database(postgres_server) as url:
        database = Database(url, timeout_seconds=10)
        yield database
        database.close()


@pytest.fixture(scope="session")
def pgbouncer(postgres_server: str, pgbouncer_server: str) -> Generator[Database]:
    with fresh_database(postgres_server) as url:
        through = make_url(pgbouncer_server).set(database=make_url(url).database)
        database = Database(through.render_as_string(hide_password=False), timeout_seconds=10)
        yield database
        database.close()


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    return ObjectStore((tmp_path / "objects").as_uri())


@pytest.fixture(scope="session")
def rclone(s3_account: S3Account) -> Generator[ObjectStore]:
    with fresh_bucket(s3_account) as bucket:
        yield ObjectStore(f"{bucket.url}/prefix", bucket.options, timeout_seconds=30)


@pytest.fixture(scope="session")
def moto(conditional_s3_account: S3Account) -> Generator[ObjectStore]:
    with fresh_bucket(conditional_s3_account) as bucket:
        yield ObjectStore(f"{bucket.url}/prefix", bucket.options, timeout_seconds=30)
