{{ config(severity='warn') }}

select max(received_at) as newest
from {{ source('coinbase', 'coinbase_products_raw') }}
having coalesce(max(received_at) < now() - interval '1 day', true)
