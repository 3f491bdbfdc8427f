{% macro get_incremental_insert_new_sql(arg_dict) %}
    {% set columns = get_quoted_csv(arg_dict.dest_columns | map(attribute='name')) %}
    insert into {{ arg_dict.target_relation }} ({{ columns }})
    select {{ columns }} from {{ arg_dict.temp_relation }}
    on conflict ({{ arg_dict.unique_key | join(', ') }}) do nothing
{% endmacro %}
