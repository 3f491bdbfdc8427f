{#
    Each test selects what breaks the expectation: rows, or groups of rows.
    Where row_condition stands bare beside another condition, an "or" in it splits the two:
    dbt_expectations 0.10.9 reads it so.
#}

{% test expect_column_values_to_be_between(
    model, column_name, min_value=none, max_value=none, row_condition=none, strictly=false
) %}
{% if min_value is none and max_value is none %}
    {{ exceptions.raise_compiler_error("Neither min_value nor max_value is given.") }}
{% endif %}
{% set or_equal = "" if strictly else "=" %}
with rows_to_check as (
    {{ dbt_expectations.rows_where(model, row_condition) }}
)

select * from rows_to_check
where
    not (
        true
        {% if min_value is not none -%}
            and {{ column_name }} >{{ or_equal }} {{ min_value }}
        {%- endif %}
        {% if max_value is not none -%}
            and {{ column_name }} <{{ or_equal }} {{ max_value }}
        {%- endif %}
    )
{% endtest %}


{% test expect_column_values_to_be_in_set(
    model, column_name, value_set, quote_values=true, row_condition=none
) %}
{% set values = [] %}
{% for value in value_set %}
    {% do values.append("'" ~ value ~ "'::text" if quote_values else value) %}
{% endfor %}
with rows_to_check as (
    {{ dbt_expectations.rows_where(model, row_condition) }}
),

allowed (allowed_value) as (
    values ({{ values | join("), (") }})
)

select * from rows_to_check
where ({{ column_name }} in (select allowed_value from allowed)) is not true
{% endtest %}


{% test expect_column_pair_values_A_to_be_greater_than_B(
    model, column_A, column_B, or_equal=false, row_condition=none
) %}
with rows_to_check as (
    {{ dbt_expectations.rows_where(model, row_condition) }}
)

select * from rows_to_check
where not ({{ column_A }} {{ ">=" if or_equal else ">" }} {{ column_B }})
{% endtest %}


{% test expect_compound_columns_to_be_unique(
    model,
    column_list,
    quote_columns=false,
    ignore_row_if="all_values_are_missing",
    row_condition=none
) %}
{% if not column_list %}
    {{ exceptions.raise_compiler_error("column_list is empty: name the columns.") }}
{% endif %}
{% if ignore_row_if not in ["all_values_are_missing", "any_value_is_missing"] %}
    {{ exceptions.raise_compiler_error(
        "Unknown ignore_row_if '" ~ ignore_row_if
        ~ "': choose all_values_are_missing or any_value_is_missing."
    ) }}
{% endif %}
{% set columns = [] %}
{% for column in column_list %}
    {% do columns.append(adapter.quote(column) if quote_columns else column) %}
{% endfor %}
{% set connective = " and " if ignore_row_if == "all_values_are_missing" else " or " %}
select
    {{ columns | join(", ") }},
    count(*)
from {{ model }}
where
    {{ row_condition or true }}
    and not ({{ columns | join(" is null" ~ connective) }} is null)
group by {{ columns | join(", ") }}
having count(*) > 1
{% endtest %}


{% test expect_row_values_to_have_recent_data(
    model, column_name, datepart, interval, row_condition=none
) %}
{% if interval is not number %}
    {{ exceptions.raise_compiler_error("interval is '" ~ interval ~ "': give a number.") }}
{% endif %}
{# The clock of the session, taken for UTC, in the zone that dbt_date is set to. #}
{% set now -%}
    (localtimestamp at time zone 'UTC' at time zone '{{ var("dbt_date:time_zone") }}')
{%- endset %}
{% set row_time = "cast(" ~ column_name ~ " as timestamp)" %}
select max({{ row_time }}) as newest
from {{ model }}
where
    {{ row_time }} <= {{ now }}
    and {{ row_condition or true }}
having (max({{ row_time }}) >= {{ now }} - interval '{{ interval }} {{ datepart }}') is not true
{% endtest %}


{% macro rows_where(model, row_condition) -%}
    select * from {{ model }}
    {%- if row_condition %}
    where {{ row_condition }}
    {%- endif %}
{%- endmacro %}
