{# A comment waits for a vacuum of the table, and calls off an autovacuum that it has waited a second
   for: written anew by each build, comments would keep a large table from ever being vacuumed. #}
{% macro postgres__persist_docs(relation, model, for_relation, for_columns) %}
    {% set written, wanted = {}, {none: model.description | trim} %}
    {% for column in model.columns.values() %}
        {% do wanted.update({column.name: column.description | trim}) %}
    {% endfor %}
    {% for row in run_query(
        "select null, obj_description('" ~ relation ~ "'::regclass, 'pg_class') union all "
        "select attname, col_description(attrelid, attnum) from pg_attribute "
        "where attrelid = '" ~ relation ~ "'::regclass and attnum > 0 and not attisdropped"
    ).rows %}
        {% do written.update({row[0]: (row[1] or '') | trim}) %}
    {% endfor %}
    {% if written != wanted %}
        {% do default__persist_docs(relation, model, for_relation, for_columns) %}
    {% endif %}
{% endmacro %}
