"""Which SQL functions always give the same answer for the same rows.

A list of what is known to be safe, not of what is known to be harmful: a function that is in
neither list may read other tables or change some, so its query is not cached until it is
declared in ``ORMCACHE["DEPENDS_ON"]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from ormcache.reasons import Reason

# Built into SQLite, PostgreSQL and MySQL or MariaDB, or put there by Django.
_EVERYWHERE = frozenset(
    """
    abs acos any_value asin atan atan2 avg bit_and bit_or bit_xor cast ceil ceiling char
    coalesce collate concat concat_ws cos cot count cume_dist degrees dense_rank exp first_value
    floor format json json_array json_object lag last_value lead length like ln log log10 lower
    lpad ltrim max md5 min mod nth_value ntile nullif octet_length percent_rank percentile_cont
    percentile_disc pi pow power radians rank repeat replace reverse round row_number rpad rtrim
    sign sin soundex sqrt stddev_pop stddev_samp substr substring sum tan trim upper var_pop
    var_samp
    """.split()
)

# With the extensions of django.contrib.postgres.
_POSTGRESQL = frozenset(
    """
    abbrev acosh akeys area array array_agg array_append array_cat array_dims array_fill
    array_length array_lower array_ndims array_position array_positions array_prepend
    array_remove array_replace array_to_json array_to_string array_to_tsvector array_upper ascii
    asinh atanh avals bit_count bit_length bitxor bool_and bool_or box broadcast btrim
    cardinality cbrt center char_length character_length chr circle convert corr cosh covar_pop
    covar_samp date date_bin date_part date_trunc datemultirange daterange decode defined delete
    diameter difference digest div dmetaphone dmetaphone_alt each encode every exist extract
    factorial family gcd generate_series generate_subscripts get_current_ts_config greatest
    grouping height hmac host hostmask hstore hstore_to_array hstore_to_json hstore_to_jsonb
    hstore_to_matrix inet_merge inet_same_family initcap int4multirange int4range int8multirange
    int8range interval isempty isfinite json_agg json_array_elements json_array_elements_text
    json_array_length json_arrayagg json_build_array json_build_object json_each json_each_text
    json_exists json_extract_path json_extract_path_text json_object_agg json_object_keys
    json_objectagg json_query json_serialize json_strip_nulls json_table json_typeof json_value
    jsonb jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length
    jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_exists
    jsonb_exists_all jsonb_exists_any jsonb_extract_path jsonb_extract_path_text jsonb_insert
    jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_match
    jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty jsonb_set
    jsonb_strip_nulls jsonb_typeof justify_days justify_hours justify_interval lcm least left
    levenshtein levenshtein_less_equal line lower_inc lower_inf lseg make_date make_interval
    make_time make_timestamp make_timestamptz masklen metaphone min_scale mode multirange
    netmask network normalize nummultirange numnode numrange overlay path pg_size_pretty
    phraseto_tsquery plainto_tsquery point polygon position querytree quote_ident quote_literal
    quote_nullable radius range_agg range_intersect_agg range_merge regexp_count regexp_instr
    regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2
    regr_slope regr_sxx regr_sxy regr_syy right row row_to_json scale set_masklen setweight
    sha224 sha256 sha384 sha512 similarity sinh skeys slice split_part starts_with stddev
    strict_word_similarity string_agg string_to_array strip strpos svals tanh time timestamp
    timestamptz timezone to_ascii to_char to_date to_hex to_json to_jsonb to_number to_timestamp
    to_tsquery to_tsvector translate treat trim_array trim_scale trunc ts_delete ts_filter
    ts_headline ts_rank ts_rank_cd tsmultirange tsquery_phrase tsrange tstzmultirange
    tstzrange tsvector_to_array unaccent unnest upper_inc upper_inf uuid_extract_timestamp
    uuid_extract_version variance websearch_to_tsquery width width_bucket word_similarity xmlagg
    xmlconcat xmlelement xmlforest xpath xpath_exists
    """.split()
)

# XOR and the like are operators that may stand in front of a parenthesis.
_MYSQL = frozenset(
    """
    add_months adddate addtime against area ascii bin_to_uuid bit_count bit_length char_length
    character_length chr convert convert_tz crc32 date date_add date_format date_sub datediff
    datetime day dayname dayofmonth dayofweek dayofyear decode delete div each elt encode
    extract field find_in_set from_base64 from_days from_unixtime greatest group_concat grouping
    hex host hour if ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval
    is_ipv4 is_ipv6 isempty isnull json_array_append json_array_insert json_arrayagg
    json_compact json_contains json_contains_path json_depth json_detailed json_equals
    json_exists json_extract json_insert json_keys json_length json_loose json_merge_patch
    json_merge_preserve json_normalize json_objectagg json_overlaps json_pretty json_query
    json_quote json_remove json_replace json_schema_valid json_search json_set json_storage_size
    json_table json_type json_unquote json_valid json_value last_day lcase least left lengthb
    locate log2 makedate maketime match median microsecond mid minute month monthname nvl nvl2
    ord period_add period_diff point polygon position quarter regexp regexp_instr regexp_like
    regexp_replace regexp_substr right rlike row sec_to_time second sha sha1 sha2 space std
    stddev str_to_date strcmp subdate substring_index subtime time time_format time_to_sec
    timestamp timestampadd timestampdiff to_base64 to_char to_days to_seconds truncate ucase
    unhex unicode uuid_to_bin variance week weekday weekofyear xor year yearweek
    """.split()
)

_SQLITE = frozenset(
    """
    acosh asinh atanh bitxor cosh glob group_concat hex if ifnull iif instr json_array_insert
    json_array_length json_each json_extract json_group_array json_group_object json_insert
    json_patch json_quote json_remove json_replace json_set json_tree json_type json_valid jsonb
    jsonb_array jsonb_each jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert
    jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set jsonb_tree likelihood likely
    log2 match median percentile printf regexp sha1 sha224 sha256 sha384 sha512 sinh string_agg
    tanh total trunc typeof unhex unicode unlikely
    """.split()
)

# Oracle, SQL Server.
_OTHERS = frozenset(
    """
    bin_to_num box2d box3d instrb listagg months_between numtodsinterval numtoyminterval
    ratio_to_report substrb try_cast
    """.split()
)

# PostGIS, and MySQL as far as it has them.
_GEOGRAPHIC = frozenset(
    """
    asgeojson geohash geometry_distance_centroid geometrytype mbrcontains mbrcoveredby mbrcovers
    mbrdisjoint mbrequal mbrequals mbrintersects mbroverlaps mbrtouches mbrwithin st_3ddistance
    st_3dextent st_3dintersects st_3dlength st_3dperimeter st_area st_asbinary st_asewkb
    st_asgeojson st_asgml st_askml st_assvg st_astext st_aswkb st_aswkt st_azimuth st_boundary
    st_buffer st_centroid st_closestpoint st_collect st_contains st_containsproperly
    st_convexhull st_coveredby st_covers st_crosses st_dfullywithin st_difference st_dimension
    st_disjoint st_distance st_distance_sphere st_distance_spheroid st_distancesphere
    st_distancespheroid st_dwithin st_endpoint st_envelope st_equals st_expand st_extent
    st_exteriorring st_force2d st_force3d st_forcelhr st_forcepolygoncw st_forcerhr
    st_geogfromwkb st_geohash st_geometryn st_geometrytype st_geomfromewkb st_geomfromgeojson
    st_geomfromtext st_geomfromwkb st_hausdorffdistance st_intersection st_intersects st_isempty
    st_issimple st_isvalid st_length st_length3d st_length_spheroid st_lengthspheroid
    st_line_locate_point st_linecrossingdirection st_lineinterpolatepoint st_linelocatepoint
    st_longestline st_makeenvelope st_makeline st_makepoint st_makevalid st_maxdistance
    st_mem_size st_memsize st_minimumboundingcircle st_ndims st_npoints st_numgeometries
    st_numpoints st_overlaps st_perimeter st_perimeter3d st_point st_pointn st_pointonsurface
    st_polygon st_relate st_reverse st_rotate st_rotatex st_scale st_setsrid st_shortestline
    st_simplify st_simplifypreservetopology st_snaptogrid st_srid st_startpoint st_symdifference
    st_touches st_transform st_translate st_transscale st_union st_within st_x st_xmax st_xmin
    st_y st_ymax st_ymin st_z
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
) | {"for update"}
_RANDOM = frozenset({"rand", "random"})
# What PostgreSQL and SQLite read as a moment: 'now', but also 'tomorrow 12:00'.
_MOMENT = re.compile(
    r"(?<![^\W_])(?:now|today|tomorrow|yesterday|localtime)(?![^\W_])", re.IGNORECASE
)
# PostgreSQL skips marks and spaces around a time, as many as there are.
_MARKS = re.compile(r"[\W_]+")
_LONGEST_TIME = 64

_KNOWN = {
    "sqlite": _EVERYWHERE | _SQLITE,
    "postgresql": _EVERYWHERE | _POSTGRESQL | _GEOGRAPHIC,
    "mysql": _EVERYWHERE | _MYSQL | _GEOGRAPHIC,
}
_KNOWN_ANYWHERE = frozenset().union(*_KNOWN.values(), _OTHERS)


def judge(
    functions: Iterable[str],
    literals: Iterable[str],
    vendor: str,
    declared: Mapping[str, object],
) -> tuple[Reason | None, str]:
    """Whether a query that calls ``functions`` may be cached.

    Args:
        functions: folded names, see :class:`ormcache.sql.reads.Read`.
        literals: its string literals, folded.
        vendor: ``connection.vendor``.
        declared: names that ``DEPENDS_ON`` vouches for.

    Returns:
        None and nothing, or the reason and the name that is the cause. ``RANDOM`` only where
        nothing but random order is the matter.
    """
    found: tuple[Reason | None, str] = (None, "")
    for name in sorted(functions):
        if name in declared or name.rpartition(".")[2] in declared:
            continue
        if name in _RANDOM:
            found = (Reason.RANDOM, name)
        elif _is_volatile(name, vendor):
            return Reason.NON_DETERMINISTIC, name
        elif not is_known(name, vendor):
            return Reason.UNKNOWN_FUNCTION, name
    for literal in literals:
        if names_a_moment(literal, vendor):
            return Reason.NON_DETERMINISTIC, literal
    return found


def volatile_among(functions: Iterable[str], vendor: str) -> str:
    """The first of ``functions`` whose value changes by itself, or ``""``."""
    found = (name for name in sorted(functions) if name in _RANDOM or _is_volatile(name, vendor))
    return next(found, "")


def names_a_moment(text: str, vendor: str) -> bool:
    """Whether a database of ``vendor`` may read ``text`` as a time that is not always the same."""
    return vendor != "mysql" and _MOMENT.search(text) is not None


def moment_among(
    params: Iterable[object], vendor: str, has_cast: Callable[[], bool] = lambda: False
) -> str | None:
    """A parameter that PostgreSQL would read as a time, where a time is asked for.

    ``has_cast``: tells whether the text of the query has a cast to a time, so that one may be of
    what else is taken for a pattern of LIKE.
    """
    if vendor in ("sqlite", "mysql", "oracle"):
        # SQLite's functions that read them are never cached.
        return None
    for param in params:
        parts = _parts_of(param)
        if parts is not None:
            moment = moment_among(parts, vendor, has_cast)
            if moment is not None:
                return moment
        if (
            isinstance(param, str)
            and names_a_moment(param, vendor)
            and _may_be_time(param)
            and ("%" not in param or has_cast())
        ):
            return param
    return None


def _may_be_time(text: str) -> bool:
    """Whether ``text`` is short enough for a time, or may be an array, a range or several."""
    return text.lstrip()[:1] in ("[", "(", "{") or len(_MARKS.sub(" ", text)) < _LONGEST_TIME


def _parts_of(param: object) -> Iterable[object] | None:
    """What an array or a range of psycopg is made of; None for other parameters."""
    if isinstance(param, (list, tuple)):
        return param
    if hasattr(param, "bounds") and hasattr(param, "lower") and hasattr(param, "upper"):
        # Django leaves its bounds as they were given, such as those of (None, "now").
        return (param.lower, param.upper)
    return None


def _is_volatile(name: str, vendor: str) -> bool:
    if name in _VOLATILE or name.startswith("@"):
        return True
    return vendor == "sqlite" and name in _SQLITE_CLOCKS


def is_known(name: str, vendor: str) -> bool:
    """Whether ``name`` is a built-in function that depends on its arguments alone.

    What is built into one database may be somebody's own function in another.
    """
    if name in _KNOWN.get(vendor, _KNOWN_ANYWHERE):
        return True
    # Django defines these; the non-deterministic one is called RAND.
    return vendor == "sqlite" and name.startswith("django_")
