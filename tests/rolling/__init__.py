"""An app in two releases, and the migrations between them.

`tests.test_rolling_deploys` lets processes of both releases serve while the database is migrated.
"""
