"""Which SQL functions always give the same answer for the same rows.

A list of what is known to be safe, not of what is known to be harmful: a function that is in
neither list may read other tables or change some, so its query is not cached until it is
declared in ``ORMCACHE["DEPENDS_ON"]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ormcache.reasons import Reason

_DETERMINISTIC = frozenset(
    """
    abs acos acosh asin asinh atan atan2 atanh cbrt ceil ceiling cos cosh cot degrees div exp
    factorial floor gcd lcm ln log log10 log2 mod pi pow power radians round sign sin sinh sqrt
    tan tanh trunc truncate width_bucket scale min_scale trim_scale

    cast convert coalesce greatest least ifnull nullif nvl nvl2 isnull if iif decode collate
    try_cast typeof

    ascii bit_length btrim char char_length character_length chr concat concat_ws elt field
    find_in_set format initcap insert instr lcase left length lengthb locate lower lpad ltrim mid
    normalize octet_length ord overlay position printf quote_ident quote_literal
    quote_nullable regexp_count regexp_instr regexp_like regexp_match regexp_matches
    regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat replace
    reverse right rpad rtrim soundex space split_part starts_with string_to_array strpos substr
    substrb substring substring_index to_ascii to_base64 from_base64 to_hex translate trim ucase
    unicode unhex upper hex like glob regexp match rlike strcmp instrb difference

    crc32 md5 sha sha1 sha2 sha224 sha256 sha384 sha512 digest encode hmac

    date_format date_part date_trunc day dayname dayofmonth dayofweek dayofyear extract
    from_days hour isfinite justify_days justify_hours justify_interval last_day make_date
    make_interval make_time make_timestamp make_timestamptz makedate maketime microsecond minute
    month monthname quarter sec_to_time second str_to_date time_format time_to_sec timezone
    timestampadd timestampdiff to_char to_date to_days to_number to_seconds to_timestamp week
    weekday weekofyear year yearweek convert_tz date_add date_sub adddate subdate addtime
    subtime datediff period_add period_diff interval numtodsinterval numtoyminterval add_months
    months_between from_unixtime

    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop
    covar_samp cume_dist dense_rank every first_value group_concat grouping json_agg
    json_arrayagg json_group_array json_group_object json_object_agg json_objectagg jsonb_agg
    jsonb_object_agg lag last_value lead listagg max median min mode nth_value ntile
    percent_rank percentile_cont percentile_disc rank ratio_to_report regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number std
    stddev stddev_pop stddev_samp string_agg sum total var_pop var_samp variance xmlagg

    json json_array json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_compact json_contains json_contains_path json_depth
    json_detailed json_each json_each_text json_equals json_exists json_extract
    json_extract_path json_extract_path_text json_insert json_keys json_length json_loose
    json_merge_patch json_merge_preserve json_normalize json_object json_object_keys
    json_overlaps json_patch json_pretty json_query json_quote json_remove json_replace
    json_search json_serialize json_set json_strip_nulls json_table json_tree json_type
    json_typeof json_unquote json_valid json_value jsonb jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_exists jsonb_exists_all jsonb_exists_any jsonb_extract_path
    jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists
    jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first
    jsonb_pretty jsonb_set jsonb_strip_nulls jsonb_typeof row_to_json to_json to_jsonb
    treat row

    array array_append array_cat array_dims array_fill array_length array_lower array_ndims
    array_position array_positions array_prepend array_remove array_replace array_to_json
    array_to_string array_upper cardinality unnest generate_series generate_subscripts
    trim_array

    daterange datemultirange int4multirange int4range int8multirange int8range isempty lower_inc
    lower_inf multirange nummultirange numrange range_agg range_intersect_agg range_merge
    tsmultirange tsrange tstzmultirange tstzrange upper_inc upper_inf

    akeys avals defined delete each exist hstore hstore_to_array hstore_to_json hstore_to_jsonb
    hstore_to_matrix skeys slice svals

    abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network
    set_masklen inet_aton inet_ntoa inet6_aton inet6_ntoa is_ipv4 is_ipv6

    array_to_tsvector get_current_ts_config length numnode phraseto_tsquery plainto_tsquery
    querytree setweight strip to_tsquery to_tsvector ts_delete ts_filter ts_headline ts_rank
    ts_rank_cd ts_rewrite tsquery_phrase tsvector_to_array websearch_to_tsquery similarity
    strict_word_similarity word_similarity unaccent levenshtein levenshtein_less_equal metaphone
    dmetaphone dmetaphone_alt against

    likely unlikely likelihood uuid_extract_timestamp uuid_to_bin bin_to_uuid uuid_extract_version
    bin_to_num area box box2d box3d center circle diameter height line lseg path point polygon
    radius width xpath xpath_exists xmlelement xmlforest xmlconcat pg_size_pretty
    """.split()
)

# On SQLite these give the current time when called with 'now' or with nothing.
_SQLITE_CLOCKS = frozenset("date time datetime julianday strftime unixepoch timediff".split())

_VOLATILE = frozenset(
    """
    now current_date current_time current_timestamp current_user current_role current_catalog
    current_schema current_schemas current_database current_query current_setting localtime
    localtimestamp session_user system_user user sysdate systimestamp getdate getutcdate
    sysutcdatetime utc_date utc_time utc_timestamp curdate curtime statement_timestamp
    clock_timestamp transaction_timestamp timeofday unix_timestamp age rownum database schema
    rand random random_normal setseed dbms_random newid newsequentialid uuid uuid_short
    gen_random_uuid gen_random_bytes gen_salt uuidv4 uuidv7 uuid4 uuid7 uuid_generate_v1
    uuid_generate_v1mc uuid_generate_v4 sys_guid randomblob tablesample
    nextval currval lastval last_insert_id last_insert_rowid found_rows row_count
    changes total_changes
    connection_id pg_backend_pid txid_current pg_current_xact_id version sleep pg_sleep benchmark
    st_generatepoints
    """.split()
)
_RANDOM = frozenset({"rand", "random"})
_MOMENTS = frozenset({"now", "today", "tomorrow", "yesterday", "localtime"})


def judge(
    functions: Iterable[str],
    literals: Iterable[str],
    vendor: str,
    declared: Mapping[str, object],
) -> tuple[Reason | None, str]:
    """Whether a query that calls ``functions`` may be cached.

    Args:
        functions: folded names, see :class:`ormcache.sql.Read`.
        literals: its short string literals, folded.
        vendor: ``connection.vendor``.
        declared: names that ``DEPENDS_ON`` vouches for.

    Returns:
        None and nothing, or the reason and the name that is the cause. ``RANDOM`` only where
        nothing but random order is the matter.
    """
    found: tuple[Reason | None, str] = (None, "")
    for name in sorted(functions):
        if name in declared:
            continue
        if name in _RANDOM:
            found = (Reason.RANDOM, name)
        elif name in _VOLATILE or (vendor == "sqlite" and name in _SQLITE_CLOCKS):
            return Reason.NON_DETERMINISTIC, name
        elif not is_known(name, vendor):
            return Reason.UNKNOWN_FUNCTION, name
    for literal in literals:
        if literal in _MOMENTS and vendor in ("postgresql", "sqlite"):
            return Reason.NON_DETERMINISTIC, f"'{literal}'"
    return found


def is_known(name: str, vendor: str) -> bool:
    """Whether ``name`` is a built-in function that depends on its arguments alone."""
    if name in _DETERMINISTIC:
        return True
    if vendor == "sqlite":
        # Django defines these; the non-deterministic one is called RAND.
        return name.startswith("django_")
    return name in ("date", "time", "timestamp", "datetime") or name.startswith("st_")
