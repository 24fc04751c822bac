"""Why a read was not answered from the cache, in words that a user can act on."""

from __future__ import annotations

import enum


class Reason(str, enum.Enum):
    """A reason not to cache a read; ``explanation`` says what it means and what to do."""

    explanation: str

    def __new__(cls, code: str, explanation: str) -> Reason:
        member = str.__new__(cls, code)
        member._value_ = code
        member.explanation = explanation
        return member

    def __str__(self) -> str:
        return str.__str__(self)

    SWITCHED_OFF = (
        "switched off",
        'ORMCACHE["ENABLED"] is False. In tests the pytest plugin of ormcache sets it, unless the '
        'test uses the fixture "orm_cache", or the option "ormcache" in the configuration of '
        "pytest is on.",
    )
    DISABLED = "disabled", "The read is inside ormcache.disabled()."
    DATABASE_OFF = (
        "database switched off",
        'ORMCACHE["DATABASES"] switches this database alias off.',
    )
    MODEL_OFF = (
        "model switched off",
        'ORMCACHE["MODELS"] switches off a model whose table the query reads, or by "*" every '
        "table that it does not switch on.",
    )
    NO_CACHE = (
        "no usable cache",
        "The cache alias stores nothing, or cannot give the CONSISTENCY that was asked for; "
        "`manage.py check` says which.",
    )
    CACHE_UNREACHABLE = (
        "cache unreachable",
        "The cache did not answer; the database is asked until it does.",
    )
    WRITE_STATEMENT = "not a plain read", "The statement writes, or returns no rows."
    SELECT_FOR_UPDATE = (
        "locks rows",
        "select_for_update() asks for locks, which only the database can give.",
    )
    EXPLAIN = "explain()", "The query asks for its plan."
    ITERATOR = "iterator()", "iterator() streams rows that are not kept in memory."
    RAW = "raw()", "raw() and cursor.execute() go to the database."
    NO_ROWS_POSSIBLE = "empty query", "Django answers the query itself, without any SQL."
    NO_TABLE = "reads no table", "Nothing would tell when the answer changes."
    UNKNOWN_TABLE = (
        "reads an unknown table",
        "The SQL names a table or view that belongs to no model. Declare it in "
        'ORMCACHE["DEPENDS_ON"].',
    )
    UNMANAGED = (
        "unmanaged model",
        "The table of a model with managed = False may be a view, which changes with other "
        'tables. Declare these in ORMCACHE["DEPENDS_ON"], or an empty list for a plain table; or '
        'enable the model in ORMCACHE["MODELS"].',
    )
    VIEW = (
        "view or foreign table",
        "The database says that a name in the query is a view, or a table whose rows are "
        "elsewhere; it changes with other tables. Declare these in "
        'ORMCACHE["DEPENDS_ON"], or enable the model in ORMCACHE["MODELS"].',
    )
    ROW_SECURITY = (
        "row-level security",
        "The table has row-level security: its policies decide which rows are seen, and may read "
        'other tables. Declare these in ORMCACHE["DEPENDS_ON"], or an empty list if they read '
        "none and depend on nothing but the database user; or enable the model in "
        'ORMCACHE["MODELS"].',
    )
    TRIGGER = (
        "written by a trigger",
        "A trigger or rule of another table writes this one, as far as its text tells, and "
        'ormcache hears of the other table only. Declare it in ORMCACHE["WRITES"], under the '
        "name of the table that has the trigger.",
    )
    PARTITIONS = (
        "too many partitions",
        "The table has more than a hundred partitions or children, each of which may be written "
        "by its own name. If they are only written through the table, declare it in "
        'ORMCACHE["DEPENDS_ON"] with an empty list.',
    )
    CATALOG_UNKNOWN = (
        "kind of table unknown",
        "When the query was looked up, the database had not yet said what kinds of tables it "
        "reads, or could not be asked. The next answers are stored.",
    )
    UNREADABLE_SQL = (
        "SQL not understood",
        "The tables of the query cannot be told from its SQL.",
    )
    RAW_FRAGMENT = (
        "extra() or RawSQL",
        'The query holds hand-written SQL, and ORMCACHE["CACHE_EXTRA"] is False.',
    )
    RANDOM = (
        "random order",
        "The answer differs each time. ORMCACHE[\"CACHE_RANDOM\"] caches order_by('?') anyway.",
    )
    NON_DETERMINISTIC = (
        "depends on more than its tables",
        "The SQL has a function, a cast or a column whose value changes by itself, such as NOW().",
    )
    UNKNOWN_FUNCTION = (
        "calls an unknown function",
        "ormcache does not know what the function reads. Declare it in "
        'ORMCACHE["DEPENDS_ON"], with the tables that it reads.',
    )
    PARAMETER = (
        "parameter without a stable identity",
        "A parameter of the query is of a type that ormcache cannot compare across processes.",
    )
    WRITTEN_HERE = (
        "table written in this transaction",
        "This transaction has changed a table of the query and is not committed yet.",
    )
    SNAPSHOT = (
        "snapshot transaction",
        "The transaction reads from a snapshot (REPEATABLE READ and above, or SQLite), or a "
        "cursor of this SQLite connection may have rows left: close it, or use fetchall().",
    )
    UNSEEN = (
        "transaction begun past Django",
        "A transaction was begun with a method of the driver, of which ormcache does not see the "
        "end; it reads from the database. atomic() does not have to.",
    )
    LOCKED = (
        "transaction holds locks",
        "The transaction has taken explicit locks; it reads from the database until it ends.",
    )
    SESSION = (
        "session was altered",
        "A SET, USE or similar statement changed what this connection sees or, behind a pooler in "
        "transaction mode, what any connection of this database may see.",
    )
    READ_UNCOMMITTED = (
        "reads uncommitted rows",
        "READ UNCOMMITTED shows rows that may never be committed.",
    )
    BROKEN_TRANSACTION = "broken transaction", "Django refuses queries until the block ends."
    FEEDS_WRITE = (
        "feeds a write",
        "The read decides what a write does (get_or_create, delete, save).",
    )
    MIGRATING = "migration in progress", "This connection is migrating its database."
    BUSY = (
        "a write is being committed",
        "A transaction that changes a table of the query is between its intent and its end.",
    )
    OVERDUE = (
        "a commit is overdue",
        "The lease of a commit has run out, or that of all commits which the cache may have "
        "forgotten when it lost something, and the database has not said yet that the "
        "transactions of that time are over: some are still open or prepared. It ends with these.",
    )
    QUARANTINE = (
        "quarantine",
        "The cache, or the record of a table in it, is new: writes that began before might "
        "still be on their way. It ends by itself, after one LEASE; on PostgreSQL when the "
        "transactions that were writing by then are over, too.",
    )
    FENCE = (
        "fence not read",
        "The table ormcache_fence, in which other programs say what they have written, could not "
        "be read just now: it was due, and the connection is in a transaction that must not be "
        "disturbed, or its role may not read the table (grant it SELECT), or the database did not "
        "answer.",
    )
    NO_FENCE = (
        "no fence",
        'ORMCACHE["FENCE"] is set, and this database has no table ormcache_fence: run '
        "`manage.py migrate ormcache`. Or there is one, in a schema in which this session does "
        "not look.",
    )
    REPLICA_BEHIND = (
        "replica behind",
        "The replica has not yet replayed all that was committed before this read. Its answer is "
        "given, as it would be without ormcache, but not stored. It ends by itself.",
    )
    REPLICA_UNKNOWN = (
        "position of replica unknown",
        "It cannot be told whether the replica has replayed all commits: the servers tell no "
        "position, or the primary could not be asked just now. Where servers tell none, declare "
        'ORMCACHE["DATABASES"][alias]["MAX_LAG"].',
    )
    TOO_LARGE = (
        "result too large",
        'The result is larger than ORMCACHE["MAX_RESULT_BYTES"].',
    )
    NOT_ENCODABLE = (
        "result cannot be encoded",
        "A value of the result is of a type that ormcache does not store.",
    )
