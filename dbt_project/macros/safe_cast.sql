{# dbt takes column types from information_schema, which calls any array just ARRAY, so a row of a
   unit test could not hold one. All of ours are of text. #}
{% macro postgres__safe_cast(field, type) -%}
    cast({{ field }} as {{ 'text[]' if type == 'ARRAY' else type }})
{%- endmacro %}
