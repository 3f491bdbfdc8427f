{# When a row that is gone was found to be gone. dbt takes the time of the build, without a zone: so
   the history would depend on when somebody built. #}
{% macro postgres__snapshot_get_time() -%}
    (select max({{ config.get('updated_at') }}) from ({{ model.compiled_code }}) as newest)
{%- endmacro %}


{# `dbt run` makes no snapshots, and on a new database whoever reads one would fail. #}
{% macro make_snapshot(snapshot, relation) %}
    create table if not exists {{ snapshot }} as
    select
        *,
        ''::text as dbt_scd_id,
        received_at as dbt_updated_at,
        received_at as dbt_valid_from,
        received_at as dbt_valid_to
    from {{ relation }}
    where false
{% endmacro %}
