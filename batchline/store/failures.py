"""What is written beside a job that failed as a whole."""

FAILED = """s AS (
  UPDATE slices s SET rows_failed = s.rows FROM u WHERE u.status = 'failed' AND s.job_id = u.id
), r AS (
  INSERT INTO job_results (job_id, errors)
  SELECT u.id, CASE WHEN u.lane = 'bulk'
    THEN json_build_array(json_build_object('row', NULL, 'code', u.code, 'message', u.error))
    ELSE (SELECT json_agg(json_build_object('row', n, 'code', u.code, 'message', u.error))
          FROM generate_series(0, u.rows - 1) n) END
  FROM u WHERE u.status = 'failed' ORDER BY u.id
)"""
"""Parts of a WITH, for jobs `u` (id, status, lane, rows, code, error): an error for every row; for a slice, one."""
