-- migrate:up
set local role medallion_owner;

-- A row is a whole answer: only so can be seen which products are gone. Compressed, an answer about 700
-- products takes some 20 kB.
create table bronze.coinbase_products_raw (
    catalogue_id bigint generated always as identity primary key,
    received_at timestamptz not null,
    payload jsonb not null check (jsonb_typeof(payload) = 'array')
);
comment on table bronze.coinbase_products_raw is
'One row per fetch of the exchange''s products: the whole list, as received; append-only.';
comment on column bronze.coinbase_products_raw.catalogue_id is 'Order of arrival.';
comment on column bronze.coinbase_products_raw.received_at is
'When the list arrived, by the clock of whoever fetched it.';
comment on column bronze.coinbase_products_raw.payload is
'The products, without those that jsonb can''t hold: these are in coinbase_frames_rejected.';

create trigger append_only
before update or delete or truncate on bronze.coinbase_products_raw
for each statement execute function bronze.refuse_change();

grant select, insert on bronze.coinbase_products_raw to medallion_ingest;
grant select on bronze.coinbase_products_raw to medallion_transform;

reset role;

-- migrate:down
drop table bronze.coinbase_products_raw;
