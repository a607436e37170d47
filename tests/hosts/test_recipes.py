from pathlib import Path
import shutil
HOSTS = Path(__file__).parent
def test_x(python, empty_url, make_database, tmp_path):
    for h in ("bookshop","clinic","newsroom"):
        url = make_database()
        cwd = tmp_path / h
        shutil.copytree(HOSTS / h, cwd)
        print(h)
        print(python("-W","error","-m", "alembic", "upgrade", "heads", url=url, cwd=cwd))
        print(python("-W","error","-m", "alembic", "current", url=url, cwd=cwd))
        if h == "bookshop": print(python("-m", "alembic", "-n", "checkpoint_store", "upgrade", "head", url=url, cwd=cwd))
        print(python("-m", "alembic", "check", url=url, cwd=cwd))
        if h!="bookshop":
            print(python("-m", "alembic", "downgrade", "checkpoint_store@base", url=url, cwd=cwd))
            print(python("-m", "alembic", "current", url=url, cwd=cwd))
