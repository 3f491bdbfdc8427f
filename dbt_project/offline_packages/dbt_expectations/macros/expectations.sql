{# Each test selects the rows, groups or columns that break the expectation. #}

{% test expect_column_values_to_be_between(
    model, column_name, min_value=none, max_value=none, row_condition=none, strictly=false
) %}
    select *
    from {{ model }}
    where
        ({{ row_condition or true }})
        and not ({{ dbt_expectations.is_between(column_name, min_value, max_value, strictly) }})
{% endtest %}


{% test expect_column_values_to_be_in_set(
    model, column_name, value_set, quote_values=true, row_condition=none
) %}
    {% set quote = "'" if quote_values else "" %}
    select *
    from {{ model }}
    where
        ({{ row_condition or true }})
        and ({{ column_name }} in ({{ quote ~ value_set | join(quote ~ ", " ~ quote) ~ quote }})) is not true
{% endtest %}


{% test expect_column_values_to_match_regex(
    model, column_name, regex, row_condition=none, is_raw=false, flags=""
) %}
    select *
    from {{ model }}
    where
        ({{ row_condition or true }})
        and regexp_match({{ column_name }}, '{{ regex }}', '{{ flags }}') is null
{% endtest %}


{% test expect_column_values_to_not_be_null(model, column_name, row_condition=none) %}
    select *
    from {{ model }}
    where ({{ row_condition or true }}) and {{ column_name }} is null
{% endtest %}


{% test expect_compound_columns_to_be_unique(
    model,
    column_list,
    quote_columns=false,
    ignore_row_if="all_values_are_missing",
    row_condition=none
) %}
    {% set columns = column_list | map("tojson") | list if quote_columns else column_list %}
    select {{ columns | join(", ") }}
    from {{ model }}
    where ({{ row_condition or true }})
    group by {{ columns | join(", ") }}
    having count(*) > 1
{% endtest %}


{% test expect_column_pair_values_A_to_be_greater_than_B(
    model, column_A, column_B, or_equal=false, row_condition=none
) %}
    select *
    from {{ model }}
    where
        ({{ row_condition or true }})
        and not ({{ column_A }} {{ ">=" if or_equal else ">" }} {{ column_B }})
{% endtest %}


{% test expect_row_values_to_have_recent_data(
    model, column_name, datepart, interval, row_condition=none
) %}
    select max({{ column_name }}::timestamp)
    from {{ model }}
    where ({{ row_condition or true }}) 
    having max({{ column_name }}::timestamp) < (now() at time zone 'UTC') - interval '{{ interval }} {{ datepart }}'
{% endtest %}


{% test expect_table_row_count_to_be_between(
    model, min_value=none, max_value=none, group_by=none, row_condition=none, strictly=false
) %}
    select count(*)
    from {{ model }}
    where ({{ row_condition or true }})
    {% if group_by %}group by {{ group_by | join(", ") }}{% endif %}
    having not ({{ dbt_expectations.is_between("count(*)", min_value, max_value, strictly) }})
{% endtest %}


{% macro is_between(value, min_value, max_value, strictly) %}
    {%- set or_equal = "" if strictly else "=" -%}
    true
    {%- if min_value is not none %} and {{ value }} >{{ or_equal }} {{ min_value }}{% endif %}
    {%- if max_value is not none %} and {{ value }} <{{ or_equal }} {{ max_value }}{% endif %}
{%- endmacro %}
