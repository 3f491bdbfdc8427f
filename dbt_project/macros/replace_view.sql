{# In place: dbt's own way renames the old view and drops it with all that depend on it, so that for a
   moment whoever reads finds none. Columns can only be added so; --full-refresh makes a view anew. #}
{% materialization view, adapter='postgres' %}
    {% set view = this.incorporate(type='view') %}
    {{ run_hooks(pre_hooks, inside_transaction=false) }}
    {{ run_hooks(pre_hooks, inside_transaction=true) }}
    {% call statement('main') %}
        {% if config.get('contract').enforced %}{{ get_assert_columns_equivalent(sql) }}{% endif %}
        {% if should_full_refresh() %}drop view if exists {{ view }} cascade;{% endif %}
        create or replace view {{ view }} as (
            {{ sql }}
        )
    {% endcall %}
    {% do apply_grants(view, config.get('grants'), should_revoke=true) %}
    {% do persist_docs(view, model) %}
    {{ run_hooks(post_hooks, inside_transaction=true) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=false) }}
    {% do return({'relations': [view]}) %}
{% endmaterialization %}
