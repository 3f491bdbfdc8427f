with answers as (
    select * from {{ source('coinbase', 'coinbase_candles_raw') }}
),

-- A bucket that is not in the answer had no trade, which is worth a row; so is a candle that nobody
-- asked for.
elements as (
    select
        answers.bronze_id,
        answers.received_at,
        answers.product_id,
        case answers.granularity when 60 then '1m' else '1h' end as granularity,
        elements.*
    from answers
    cross join lateral (  -- noqa: ST05
        select
            asked.bucket,
            told.place::integer as place,
            told.candle as payload
        from
            generate_series(
                answers.first_bucket,
                answers.last_bucket,
                make_interval(secs => answers.granularity)
            ) as asked (bucket)
        full join
            jsonb_array_elements(
                case jsonb_typeof(answers.payload) when 'array' then answers.payload end
            ) with ordinality as told (candle, place)
            on extract(epoch from asked.bucket)::bigint::text = told.candle ->> 0
    ) as elements
),

typed as (
    select
        elements.*,
        casts.*
    from elements
    cross join lateral (  -- noqa: ST05
        select
            {{ guarded_numeric('(elements.payload ->> 1)') }} as low,
            {{ guarded_numeric('(elements.payload ->> 2)') }} as high,
            {{ guarded_numeric('(elements.payload ->> 3)') }} as open,
            {{ guarded_numeric('(elements.payload ->> 4)') }} as close,
            {{ guarded_numeric('(elements.payload ->> 5)') }} as volume
        -- A fence: else the planner writes each cast out again wherever its column is used.
        offset 0  -- noqa: PRS
    ) as casts
),

judged as (
    select
        *,
        payload is not null and (
            bucket is null
            or low is null
            or high is null
            or open is null
            or close is null
            or volume is null
        ) as is_unreadable
    from typed
)

select * from judged
