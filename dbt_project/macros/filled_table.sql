{# dbt makes a table with its constraints and inserts: PostgreSQL does that with one process, and keeps
   the key up row by row. Made by what fills it, all cores read, and the key is built at once. #}
{% macro filled_table(relation, sql) -%}
    {%- do get_assert_columns_equivalent(sql) -%}
    create table {{ relation }} as (
        {{ get_select_subquery(sql) }}
    )
{%- endmacro %}


{# What dbt calls behind a table that it has made. #}
{% macro postgres__create_indexes(relation) -%}
    {%- if not is_citus() and model.resource_type == 'model' -%}
        {%- set constraints = [] -%}
        {%- for column in model.columns.values() -%}
            {%- for constraint in column.constraints if constraint.type != 'not_null' -%}
                {%- do exceptions.raise_compiler_error(
                    column.name ~ ": declare what is more than not_null as a constraint of the model."
                ) -%}
            {%- endfor -%}
            {%- if column.constraints -%}
                {%- do constraints.append('alter column ' ~ column.name ~ ' set not null') -%}
            {%- endif -%}
        {%- endfor -%}
        {%- for constraint in adapter.render_raw_model_constraints(model.constraints) -%}
            {%- do constraints.append('add ' ~ constraint) -%}
        {%- endfor -%}
        {%- if constraints -%}
            {%- do run_query('alter table ' ~ relation ~ ' ' ~ constraints | join(', ')) -%}
        {%- endif -%}
    {%- endif -%}
    {%- do default__create_indexes(relation) -%}
    {# Whatever reads it next would be planned for some thousand rows, until autovacuum has been here.
       Citus refuses it in a transaction that wrote to a copy on each node. #}
    {%- if not is_citus() and model.resource_type == 'model' -%}
        {%- do run_query('analyze ' ~ relation) -%}
    {%- endif -%}
{%- endmacro %}
