{{ config(materialized='view') }}

with trading_days as (
    select * from {{ ref('ohlc_1d') }}
),

bounds as (
    select
        min(bucket_1d) at time zone 'UTC' as first_day,
        max(bucket_1d) at time zone 'UTC' as last_day
    from trading_days
),

days as (
    select generate_series(first_day, last_day, interval '1 day')::date as day
    from bounds
),

dates as (
    select
        day,
        extract(year from day)::integer as year,
        extract(quarter from day)::integer as quarter,
        extract(month from day)::integer as month,
        extract(day from day)::integer as day_of_month,
        extract(isoyear from day)::integer as iso_year,
        extract(week from day)::integer as iso_week,
        extract(isodow from day)::integer as weekday,
        to_char(day, 'YYYY-"Q"Q') as year_quarter,
        to_char(day, 'YYYY-MM') as year_month,
        to_char(day, 'IYYY-"W"IW') as year_week,
        to_char(day, 'FMMonth') as month_name,
        to_char(day, 'FMDay') as weekday_name,
        date_trunc('month', day::timestamp)::date as month_start,
        date_trunc('week', day::timestamp)::date as week_start,
        extract(isodow from day) > 5 as is_weekend
    from days
)

select * from dates
