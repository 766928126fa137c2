
import time
import sqlalchemy as sa
from cache_blocks import TieredCache, CacheSettings
from cache_blocks.maintenance import stats
def test_it(postgres_url, tmp_path):
    c=TieredCache(CacheSettings(database_url=postgres_url, database_timeout_seconds=300, home=tmp_path)); stats(c)
    t=time.time()
    with c.parts.database.begin() as k:
        k.execute(sa.text("""insert into cache_blocks_entry(namespace,key,kind,task,subject,main_input,usage,fence,created_at,expires_at,compute_seconds,stored_bytes,blob_bytes,placement,generations,manifest)
        select 'default', kind||':'||md5(i::text), kind, 'task'||(i%20), 's'||i, '', '{}', i, extract(epoch from now())-random()*86400*25, extract(epoch from now())+random()*86400*25,1,200+(random()*20000)::int,0,'sql','[0,0,0]','{}' from (select i, (array['transcript','ai-enhancement','search-results'])[1+i%3] as kind from generate_series(1,250000) i) x"""))
    print("entries",time.time()-t,flush=True)
    with c.parts.database.begin() as k:
        k.execute(sa.text("""insert into cache_blocks_event(id,namespace,at,action,kind,key,outcome,tier,reason,cause,task,flow,flow_run_id,subject,task_run_id,stored_bytes,seconds,seconds_saved,money,money_saved)
        select md5(i::text),'default',extract(epoch from now())-random()*86400*29,'lookup',kind,kind||':'||md5(i::text),case when i%4>0 then 'hit' else 'miss' end, case when i%4>0 then 'redis' else '' end,'','c'||(i%5),'task'||(i%20),'flow'||(i%7),'','','',100,.001,1,0,.1 from (select i, (array['transcript','ai-enhancement','search-results'])[1+i%3] as kind from generate_series(1,250000) i) x"""))
    print("events",time.time()-t,flush=True)
    from cache_blocks.maintenance import trends as T, statistics as S
    now=time.time()
    with c.parts.database.read() as k:
        for name,fn in dict(kinds=lambda:k.execute(S._kinds("default",now)).all(),metrics=lambda:T.metrics_since(k,"default",0),trends=lambda:T.trends(k,"default","day",0),causes=lambda:T.causes(k,"default",0),biggest=lambda:T.biggest(k,"default"),never=lambda:T.never_read(k,"default",now)).items():
            for _ in range(2):
                t=time.perf_counter(); fn(); print(name, round(time.perf_counter()-t,4))
    for by in ("day","kind","task","flow")*2:
        t=time.perf_counter(); f=stats(c,by=by); print(by, round(time.perf_counter()-t,3), f.entries, f.metrics.total, len(f.trends), len(f.never_read), flush=True)
