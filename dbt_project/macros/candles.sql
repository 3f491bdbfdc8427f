{% macro bucket_start(column, interval) -%}
    date_bin('{{ interval }}', {{ column }}, timestamptz '2000-01-01 00:00:00+00')
{%- endmacro %}


{# The order key becomes the front of an array, whose minimum carries the value along: three times
   faster than sorting, and a tie in time is broken by what follows. #}
{% macro first_by(value, time, tie=none) -%}
    {{ _value_at('min', value, time, tie) }}
{%- endmacro %}


{% macro last_by(value, time, tie=none) -%}
    {{ _value_at('max', value, time, tie) }}
{%- endmacro %}


{% macro _value_at(aggregate, value, time, tie) -%}
    ({{ aggregate }}(
        array[extract(epoch from {{ time }}){{ ', ' ~ tie if tie }}, {{ value }}]
    ))[{{ 3 if tie else 2 }}]
{%- endmacro %}


{% macro neighbours(row, candles) -%}
    {% for side, than, order in [('before', '<', 'desc'), ('behind', '>', 'asc')] -%}
        left join lateral (  -- noqa: ST05
            select * from {{ candles }} as neighbour
            where
                neighbour.product_id = {{ row }}.product_id
                and neighbour.granularity = {{ row }}.granularity
                and neighbour.bucket {{ than }} {{ row }}.bucket
            order by neighbour.bucket {{ order }}
            limit 1
        ) as {{ side }} on true
    {% endfor %}
{%- endmacro %}


{# Fenced, for else the planner reads all of the candles ahead of the neighbours. #}
{% macro between_neighbours(row, candles) -%}
    cross join lateral (
        select {{ candles }}.* from {{ candles }}
        where
            {{ candles }}.product_id = {{ row }}.product_id
            and {{ candles }}.granularity = {{ row }}.granularity
            and {{ candles }}.bucket >= coalesce(before.bucket, '-infinity')
            and {{ candles }}.bucket <= coalesce(behind.bucket, 'infinity')
        offset 0
    ) as between_neighbours
{%- endmacro %}


{# Theirs are doubles: from a number to the nearest one, and on to the shortest text that means it, is
   half a unit of its last place each, together 2^-52 of it at most. A sum of doubles is off by no more
   than that again for each one that is added. #}
{% macro is_but_rounded() -%}
    abs(volume_difference) * 2::numeric ^ 52 <= volume * (1 + trade_count)
    {%- for price in ['open', 'high', 'low', 'close'] %}
        and abs({{ price }}_difference) * 2::numeric ^ 52 <= {{ price }}
    {%- endfor %}
{%- endmacro %}


{# A series of constants, for the planner knows how long it is. It takes one that begins with a column
   for a thousand rows, and reads the table of the parts from end to end. #}
{% macro each_part(interval, part_interval) -%}
    generate_series(
        0,
        (
            extract(epoch from interval '{{ interval }}')
            / extract(epoch from interval '{{ part_interval }}')
        )::integer - 1
    )
{%- endmacro %}


{% macro roll_up_candles(parts, part_bucket, part_interval, bucket, interval) %}
-- Used twice, PostgreSQL would else write out the whole table at every run.
with parts as not materialized (
    select * from {{ parts }}
),

{% if is_incremental() -%}
    touched_buckets as (
        select distinct
            product_id,
            {{ bucket_start(part_bucket, interval) }} as {{ bucket }}
        from parts
        where {{ is_touched('bronze_id', part_bucket) }}
    ),

    -- Joined by equality: a range join is slow on one machine and far slower on a distributed table.
    touched_parts as (
        select
            parts.*,
            touched_buckets.{{ bucket }}
        from touched_buckets
        cross join {{ each_part(interval, part_interval) }} as part
        inner join parts
            on
                touched_buckets.product_id = parts.product_id
                and touched_buckets.{{ bucket }} + part * interval '{{ part_interval }}'
                = parts.{{ part_bucket }}
    ),
{%- else -%}
    touched_parts as (
        select
            *,
            {{ bucket_start(part_bucket, interval) }} as {{ bucket }}
        from parts
        where {{ in_window('bronze_id') }}
    ),
{%- endif %}

candles as (
    select
        product_id,
        {{ bucket }},
        {{ first_by('open', part_bucket) }} as open,
        max(high) as high,
        min(low) as low,
        {{ last_by('close', part_bucket) }} as close,
        sum(volume) as volume,
        sum(quote_volume) as quote_volume,
        sum(quote_volume) / sum(volume) as vwap,
        sum(trade_count)::bigint as trade_count,
        sum(taker_buy_volume) as taker_buy_volume,
        min(first_trade_id) as first_trade_id,
        max(last_trade_id) as last_trade_id,
        sum(repaired_count)::bigint as repaired_count,
        max(bronze_id) as bronze_id
    from touched_parts
    group by product_id, {{ bucket }}
)

select * from candles
{% endmacro %}
