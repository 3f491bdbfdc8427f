{% macro begin_run() %}
    {% if not execute or flags.WHICH not in ['build', 'run', 'test'] %}
        {% do return('') %}
    {% endif %}
    {% if flags.EMPTY %}
        {% do exceptions.raise_compiler_error(
            "--empty is refused: it would mark trades as read that no model has seen."
        ) %}
    {% endif %}
    {% set others = run_query("select run_id from ops.pipeline_runs where status = 'running'").rows %}
    {% if others %}
        {% do log(
            "Another dbt run is at work here, or was killed a moment ago: waiting for its end.", true
        ) %}
    {% endif %}
    {% call statement('begin_run') %}
    begin;
    select ops.begin_run(
        '{{ invocation_id }}', '{{ flags.WHICH }}', '{{ run_started_at }}',
        {{ flags.FULL_REFRESH | as_bool }}
    );
    with bronze as (
        select
            coalesce(max(watermark.high), 0) as low,
            {% if flags.WHICH == 'test' -%}
                coalesce(max(watermark.high), 0) as high
            {%- else -%}
                bronze.settle() as high
            {%- endif %}
        from ops.model_watermarks as watermark
        where watermark.model = 'bronze.coinbase_trades_raw'
    ),

    settled as (
        insert into ops.model_watermarks (model, low, high, checked)
        select 'bronze.coinbase_trades_raw', low, high, high from bronze
        on conflict (model) do update
            set
                low = excluded.low,
                high = excluded.high,
                checked = excluded.checked,
                updated_at = excluded.updated_at
    )

    update ops.pipeline_runs
    set bronze_low = bronze.low, bronze_high = bronze.high
    from bronze
    where run_id = '{{ invocation_id }}';
    commit;
    {% endcall %}
    {% do _learn_of_tables() %}
{% endmacro %}


{# dbt looks once which tables there are, before on-run-start: another run may have made some since. #}
{% macro _learn_of_tables() %}
    {% set tables = run_query(
        "select schemaname, tablename from pg_tables where schemaname in ('silver', 'gold')"
    ).rows %}
    {% for table in tables %}
        {% do adapter.cache_added(api.Relation.create(
            database=target.database, schema=table[0], identifier=table[1], type='table'
        )) %}
    {% endfor %}
{% endmacro %}


{% macro end_run(results) %}
    {% if not execute or flags.WHICH not in ['build', 'run', 'test'] %}
        {% do return('') %}
    {% endif %}
    {% set checks, errors, passed = [], [], {} %}
    {% set models = results | selectattr('node.resource_type', 'equalto', 'model') | list %}
    {% for result in results %}
        {% set node, status = result.node, result.status | string %}
        {% if status in ['error', 'fail', 'runtime error'] %}
            {% do errors.append(node.name ~ ': ' ~ (result.message or status) | trim) %}
        {% endif %}
        {% if node.resource_type == 'test' %}
            {% if status in ['pass', 'warn'] %}
                {% do passed.update({node.unique_id: true}) %}
            {% endif %}
            {% do checks.append(_check_result(result)) %}
        {% endif %}
    {% endfor %}
    begin;
    {% for name in _models_that_passed(passed) -%}
        update ops.model_watermarks set checked = high where model = '{{ name }}';
    {% endfor -%}
    with written as (
        insert into ops.dq_check_results (
            check_ts, run_id, check_name, check_type, table_name, severity, status, passed,
            failures, seconds, details
        )
        select
            clock_timestamp(), '{{ invocation_id }}', check_name, check_type, table_name, severity,
            status, status = 'pass', failures, round(seconds, 3), details
        from jsonb_to_recordset({{ _json_literal(checks) }}) as checks (
            check_name text, check_type text, table_name text, severity text, status text,
            failures bigint, seconds numeric, details jsonb
        )
        returning check_ts, check_name, status, passed
    )

    insert into ops.dq_check_hours as counted (hour, check_name, runs, passed, last_failed_at)
    select
        date_trunc('hour', check_ts, 'UTC') as hour,
        check_name,
        count(*),
        count(*) filter (where passed),
        max(check_ts) filter (where not passed)
    from written
    where status <> 'skipped'
    group by hour, check_name
    on conflict (hour, check_name) do update
        set
            runs = counted.runs + excluded.runs,
            passed = counted.passed + excluded.passed,
            last_failed_at = coalesce(excluded.last_failed_at, counted.last_failed_at);
    delete from ops.dq_check_results
    where check_ts < now() - make_interval(days => {{ var('run_history_days') }});
    delete from ops.pipeline_runs
    where start_ts < now() - make_interval(days => {{ var('run_history_days') }});
    update ops.pipeline_runs
    set
        end_ts = now(),
        status = '{{ 'failed' if errors else 'success' }}',
        records_processed = {{ _frames_read() }},
        models = {{ models | rejectattr('status', 'equalto', 'skipped') | list | length }},
        checks = {{ checks | rejectattr('status', 'equalto', 'skipped') | list | length }},
        error_message = nullif({{ _json_literal(errors[:5] | join('; ')) }} #>> '{}', '')
    where run_id = '{{ invocation_id }}';
    commit;
{% endmacro %}


{# Apart from the update, for Citus joins no local table with a distributed one in it. #}
{% macro _frames_read() -%}
    {{ run_query(
        "select count(*) from bronze.coinbase_trades_raw where bronze_id > ("
        ~ "select bronze_low from ops.pipeline_runs where run_id = '" ~ invocation_id ~ "'"
        ~ ") and bronze_id <= ("
        ~ "select bronze_high from ops.pipeline_runs where run_id = '" ~ invocation_id ~ "')"
    ).rows[0][0] }}
{%- endmacro %}


{% macro _check_result(result) %}
    {% set node, status = result.node, result.status | string %}
    {% set target = node.attached_node or (node.depends_on.nodes | first) %}
    {% set table = graph.nodes.get(target) or graph.sources.get(target) %}
    {% do return({
        'check_name': node.name,
        'check_type': node.test_metadata.name if node.test_metadata else 'singular',
        'table_name': watermark_name(table),
        'severity': node.config.severity | lower,
        'status': 'error' if status == 'runtime error' else status,
        'failures': result.failures,
        'seconds': result.execution_time,
        'details': {'message': result.message, 'description': node.description},
    }) %}
{% endmacro %}


{% macro _models_that_passed(passed) %}
    {% set failed, names = {}, [] %}
    {% for test in graph.nodes.values() | selectattr('resource_type', 'equalto', 'test') %}
        {% if 'full' not in test.tags and test.unique_id not in passed %}
            {% for unique_id in test.depends_on.nodes %}
                {% do failed.update({unique_id: true}) %}
            {% endfor %}
        {% endif %}
    {% endfor %}
    {% for node in graph.nodes.values() | selectattr('resource_type', 'equalto', 'model') %}
        {% if node.config.materialized == 'incremental' and node.unique_id not in failed %}
            {% do names.append(watermark_name(node)) %}
        {% endif %}
    {% endfor %}
    {% do return(names) %}
{% endmacro %}


{% macro _json_literal(value) -%}
    '{{ tojson(value) | replace("'", "''") }}'::jsonb
{%- endmacro %}
