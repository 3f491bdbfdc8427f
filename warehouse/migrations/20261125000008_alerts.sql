-- migrate:up
set local role medallion_transform;

-- For the newest verdict of a check. One that was skipped is none.
create index on ops.dq_check_results (check_name, id) where status <> 'skipped';

reset role;

-- migrate:down
set local role medallion_transform;
drop index ops.dq_check_results_check_name_id_idx;
reset role;
