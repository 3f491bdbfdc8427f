{# Asked once per run: a graph that is kept outlives the run, so the answer is kept with its id. #}
{% macro is_citus() %}
    {% if not execute %}
        {% do return(false) %}
    {% endif %}
    {% set answers = graph.setdefault('is_citus', {}) %}
    {% if invocation_id not in answers %}
        {% set found = run_query("select extname from pg_extension where extname = 'citus'").rows %}
        {% do answers.clear() %}
        {% do answers.update({invocation_id: found | length > 0}) %}
    {% endif %}
    {% do return(answers[invocation_id]) %}
{% endmacro %}


{# On Citus the rows that are new wait in a view, not in a table: so they go from shard to shard, and
   none comes to the coordinator. A snapshot is small, and changes while it is read: it stays a table
   of the coordinator. #}
{% macro postgres__create_table_as(temporary, relation, sql) -%}
    {%- if not is_citus() and temporary or model.resource_type == 'snapshot' -%}
        {{ dbt.postgres__create_table_as(temporary, relation, sql) }}
    {%- elif not is_citus() -%}
        {{ filled_table(relation, sql) }}
    {%- elif temporary -%}
        {%- if config.get('contract').enforced -%}
            {%- do get_assert_columns_equivalent(sql) -%}
        {%- endif %}
        create temporary view {{ relation }} as (
            {{ sql }}
        )
    {%- else -%}
        create table {{ relation }} {{ get_table_columns_and_constraints() }};
        {{ distribute(relation, config.get('distributed_by')) }};
        insert into {{ relation }} ({{ adapter.dispatch('get_column_names', 'dbt')() }})
        {{ get_select_subquery(sql) }}
    {%- endif -%}
{%- endmacro %}


{# A product lies on one node in every table. What has no column for it is copied to each node. #}
{% macro distribute(relation, column) -%}
    {%- if column -%}
        select create_distributed_table(
            '{{ relation }}', '{{ column }}', colocate_with => 'bronze.coinbase_trades_raw'
        )
    {%- else -%}
        select create_reference_table('{{ relation }}')
    {%- endif -%}
{%- endmacro %}


{# One statement, for a view would be read once more by each. #}
{% macro get_incremental_delete_insert_sql(arg_dict) %}
    {%- if is_citus() -%}
        {%- set columns = arg_dict.dest_columns | map(attribute='name') | list -%}
        insert into {{ arg_dict.target_relation }} ({{ get_quoted_csv(columns) }})
        select {{ get_quoted_csv(columns) }} from {{ arg_dict.temp_relation }}
        on conflict ({{ arg_dict.unique_key | join(', ') }}) do update
        set
        {%- for column in columns if column not in arg_dict.unique_key %}
            {{ adapter.quote(column) }} = excluded.{{ adapter.quote(column) }}{{ ',' if not loop.last }}
        {%- endfor %}
    {%- else -%}
        {{ dbt.default__get_incremental_delete_insert_sql(arg_dict) }}
    {%- endif -%}
{% endmacro %}
