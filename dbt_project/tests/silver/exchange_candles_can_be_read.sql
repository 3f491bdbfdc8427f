{{ config(severity='warn') }}

select * from {{ ref('stg_coinbase__exchange_candles') }}
where {{ unchecked(ref('coinbase_candles')) }} and is_unreadable
