{% macro in_window(column) -%}
    {{ column }} > coalesce(
        nullif(current_setting('medallion.window_low', true), ''), '0'
    )::bigint
    and {{ column }} <= coalesce(
        nullif(current_setting('medallion.window_high', true), ''), '9223372036854775807'
    )::bigint
{%- endmacro %}


{# `dbt build -s gold --vars '{rebuild_from: 2026-11-01, rebuild_until: 2026-11-02}'` takes the days
   between for new, and empties them first. #}
{% macro is_touched(bronze_id, time) -%}
    {%- if var('rebuild_from', none) -%}
        (({{ in_window(bronze_id) }}) or ({{ in_rebuilt_days(time) }}))
    {%- else -%}
        {{ in_window(bronze_id) }}
    {%- endif -%}
{%- endmacro %}


{% macro in_rebuilt_days(time) -%}
    {{ time }} >= '{{ var("rebuild_from") }} 00:00:00+00'
    and {{ time }} < '{{ var("rebuild_until") }} 00:00:00+00'
{%- endmacro %}


{% macro open_window() %}
    {% set own = watermark_name(this) %}
    {% set inputs = window_inputs(model.depends_on.nodes) | unique | list %}
    select pg_advisory_xact_lock(hashtextextended('medallion model {{ own }}', 0));
    -- By `set local`, which Citus tells its workers: it does not look into set_config.
    do $$
    declare
        new record;
    begin
        with inputs as (
            select * from ops.model_watermarks
            where model in ('{{ inputs | join("', '") }}')
        ),

        watermarks as (
            select
                {% if is_incremental() -%}
                    coalesce((
                        select high from ops.model_watermarks
                        where
                            model = '{{ own }}'
                            and updated_at > all (select rebuilt_at from inputs)
                    ), 0) as low,
                {%- else -%}
                    0 as low,
                {%- endif %}
                case when count(*) = {{ inputs | length }} then min(high) else 0 end as high
            from inputs
        )

        select
            low,
            greatest(low, high) as high,
            low = 0 and exists (
                select from ops.model_watermarks where model = '{{ own }}'
            ) as begins_anew
        into new
        from watermarks;
        execute format('set local medallion.window_low = %L', new.low);
        execute format('set local medallion.window_high = %L', new.high);
        execute format('set local medallion.begins_anew = %L', new.begins_anew);
    end
    $$;
    {% if 'bronze.coinbase_trades_raw' in inputs and not var('without_archived_days') -%}
        {# From the beginning of bronze: what the archive alone has would be missing. #}
        select bronze.require_whole_history()
        where current_setting('medallion.window_low') = '0';
    {%- endif %}
    {# What an input no longer holds must go. A table that can't be made anew keeps its history. #}
    {% if is_incremental() and config.get('full_refresh') is not false -%}
        delete from {{ this }}
        where
            current_setting('medallion.begins_anew')::boolean
        {%- if var('rebuild_from', none) and this.schema == 'gold' %}
            or {{ in_rebuilt_days(config.get('unique_key')[1]) }}
        {%- endif %}
    {%- endif %}
{% endmacro %}


{% macro close_window() %}
    insert into ops.model_watermarks as watermark (model, low, high, checked)
    values (
        '{{ watermark_name(this) }}',
        current_setting('medallion.window_low')::bigint,
        current_setting('medallion.window_high')::bigint,
        current_setting('medallion.window_low')::bigint
    )
    on conflict (model) do update
        set
            low = excluded.low,
            high = excluded.high,
            checked = least(watermark.checked, excluded.checked),
            rebuilt_at = case
                when excluded.low = 0 then excluded.rebuilt_at else watermark.rebuilt_at
            end,
            updated_at = excluded.updated_at
{% endmacro %}


{% macro window_inputs(unique_ids) %}
    {% set names = [] %}
    {% for unique_id in unique_ids %}
        {% set node = graph.nodes.get(unique_id) %}
        {% if unique_id in graph.sources %}
            {% do names.append('bronze.coinbase_trades_raw') %}
        {% elif node and node.resource_type == 'model' and node.config.materialized == 'view' %}
            {% do names.extend(window_inputs(node.depends_on.nodes)) %}
        {% elif node and 'reference' not in node.tags %}
            {% do names.append(watermark_name(node)) %}
        {% endif %}
    {% endfor %}
    {% do return(names) %}
{% endmacro %}


{% macro watermark_name(relation) %}
    {% do return(relation.schema ~ '.' ~ (relation.identifier or relation.alias)) %}
{% endmacro %}


{# Looked up while the SQL is written: a literal tells the planner how few rows are new. Of a subselect
   it assumes a share of the table, and reads tables from end to end as they grow. #}
{% macro watermark(relation, column) -%}
    {%- if execute -%}
        {%- set found = run_query(
            "select " ~ column ~ " from ops.model_watermarks where model = '"
            ~ watermark_name(relation) ~ "'"
        ).rows -%}
    {%- endif -%}
    {{ found[0][0] if found else 0 }}
{%- endmacro %}


{% macro unchecked(relation) -%}
    bronze_id > {{ watermark(relation, 'checked') }}
    and bronze_id <= {{ watermark(relation, 'high') }}
{%- endmacro %}


{% macro get_where_subquery(relation) -%}
    {%- set where = config.get('where') or 'true' -%}
    {%- set where = where | replace('__unchecked_rows__', unchecked(relation)) -%}
    (select * from {{ relation }} where {{ where }}) as dbt_subquery
{%- endmacro %}
